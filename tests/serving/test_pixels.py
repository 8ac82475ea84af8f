"""How many pixels an image will have, told by its head, beside what a library of images writes."""

import base64
import sys
from collections.abc import Callable
from io import BytesIO
from struct import pack
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.callers import Caller
from penstock.config import Policy as Limits
from penstock.errors import BadRequest
from serving import fields
from serving.fetching import Fetch
from serving.pixels import HEAD_CHARS, MOST_BLOCKS, pixels_of
from serving.policy import Policy

USER = Caller("1", "ada", "ada")


def png(*sizes: tuple[int, int]) -> bytes:
    """As much of one as is read: the head, or more than one, and where its picture begins."""
    heads = [pack(">I4sII5BI", 13, b"IHDR", *size, 8, 0, 0, 0, 0, 0) for size in sizes]
    return b"\x89PNG\r\n\x1a\n" + b"".join(heads) + pack(">I4s", 0, b"IDAT")


PICTURE = png((1, 1))
PNG = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def policy(fetch: Fetch | None = None, **limits: Any) -> Policy:
    return Policy(Limits(**{"cache_salt": False} | limits), fetch=fetch)


def image(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "sim", "messages": [{"role": "user", "content": [part]}]}


FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP"]
STARTS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF    WEBP", b"BM", b""]


def written(format: str, size: tuple[int, int], **options: Any) -> bytes:
    images = pytest.importorskip("PIL.Image")
    written = BytesIO()
    images.new("RGB", size).save(written, format, **options)
    return written.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (300, 200), (1, 5000)])
def test_an_images_pixels_are_told_by_its_head(format: str, size: tuple[int, int]) -> None:
    said: list[dict[str, Any]] = [
        {},
        {"lossless": True},
        {"exif": b"Exif\0\0" + b"x" * 60_000},
        {"comment": b"x" * 700},
    ]
    for options in said:
        encoded = base64.b64encode(written(format, size, **options)).decode()
        assert pixels_of(encoded) == size[0] * size[1]


def test_an_image_that_would_unpack_to_too_much_is_refused_by_its_head() -> None:
    bomb = png((60_000, 60_000))
    beyond = b"GIF89a" + pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + pack("<HHHH", 0, 0, 60_000, 60_000)
    for data in (bomb, beyond):
        with pytest.raises(BadRequest, match="3600000000 pixels"):
            policy().applied(fields.CHAT, image("data:image/png;base64," + base64.b64encode(data).decode()), USER)
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}] * 9}
    nine = {"model": "m", "messages": [turn]}
    assert policy(max_pixels=9).applied(fields.CHAT, nine, USER) is nine
    with pytest.raises(BadRequest, match="9 pixels"):
        policy(max_pixels=8).applied(fields.CHAT, nine, USER)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,", "data:image/png;base64,AAAA", "data:image/png;base64,iVBOR!!!", "data:,x",
        "data:image/svg+xml,<svg/>", "data:image/tiff;base64,SUkqAAgAAAA=", "data:image/png;base64",
        "data:image/png," + base64.b64encode(PICTURE).decode(),
        "data:image/png;base64," + base64.b64encode(png((1, 1), (60_000, 60_000))).decode(),
    ],
)  # fmt: skip
def test_an_image_of_which_nothing_can_be_told_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="it is no PNG"):
        policy().applied(fields.CHAT, image(url), USER)


def test_of_two_frames_that_are_announced_the_larger_counts() -> None:
    jpeg = written("JPEG", (1, 1))
    frame = b"\xff\xc0" + pack(">HBHHB", 8, 8, 6000, 5000, 0)
    assert pixels_of(base64.b64encode(jpeg[:2] + frame + jpeg[2:]).decode()) == 30_000_000
    at = jpeg.index(b"\xff\xda")
    assert pixels_of(base64.b64encode(jpeg[:at] + frame + jpeg[at:]).decode()) == 30_000_000


ROOM = HEAD_CHARS * 3 // 4
JPEG_FRAME = b"\xff\xc0" + pack(">HBHHB", 8, 8, 20, 10, 0)
JPEG_SCAN = b"\xff\xda"
GIF_SCREEN = b"GIF89a" + pack("<HHBBB", 1, 1, 0, 0, 0)
GIF_PICTURE = b"," + pack("<HHHHB", 0, 0, 20, 10, 0)


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python it takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def filled(piece: bytes, start: bytes, end: bytes) -> str:
    """As many pieces between the two as are looked at."""
    return base64.b64encode(start + piece * ((ROOM - len(start) - len(end)) // len(piece)) + end).decode()


def test_any_length_of_filling_in_a_jpeg_is_passed_over_at_once() -> None:
    encoded = filled(b"\xff", b"\xff\xd8", JPEG_FRAME + JPEG_SCAN)
    assert len(encoded) > HEAD_CHARS - 8
    assert pixels_of(encoded) == 200
    assert lines_run(lambda: pixels_of(encoded)) < 100
    runs = (b"\xff" * 100 + b"\xff\xfe\0\2") * 1000
    encoded = base64.b64encode(b"\xff\xd8" + runs + JPEG_FRAME + JPEG_SCAN).decode()
    assert pixels_of(encoded) == 200


MANY: dict[str, tuple[bytes, bytes, bytes]] = {
    "jpeg": (b"\xff\xfe\0\2", b"\xff\xd8", JPEG_FRAME + JPEG_SCAN),
    "png": (pack(">I4sI", 0, b"tEXt", 0), png((20, 10))[:-8], pack(">I4s", 0, b"IDAT")),
    "gif-extensions": (b"\x21\xfe\0", GIF_SCREEN, GIF_PICTURE),
    "gif-blocks": (b"\1x", GIF_SCREEN + b"\x21\xfe", b"\0" + GIF_PICTURE),
}


@pytest.mark.parametrize("name", MANY)
def test_what_is_cut_into_a_hundred_thousand_blocks_is_refused_after_a_few(name: str) -> None:
    piece, start, end = MANY[name]
    few = base64.b64encode(start + piece * (MOST_BLOCKS // 3) + end).decode()
    assert pixels_of(few) == 200
    many = filled(piece, start, end)
    assert len(many) > 8 * MOST_BLOCKS
    assert pixels_of(many) is None
    assert lines_run(lambda: pixels_of(many)) < 12 * MOST_BLOCKS


@pytest.mark.parametrize(
    "head",
    [
        # a marker without a length, after which one reader jumps over the frame that another reads
        b"\xff\xd8\xff\xd0" + JPEG_FRAME + b"x" * 0xFFC0 + JPEG_FRAME + JPEG_SCAN,
        b"\xff\xd8\xff\x01" + JPEG_FRAME + b"x" * 0xFFC0 + JPEG_FRAME + JPEG_SCAN,
        b"\xff\xd8\xff\xfe\0\0" + JPEG_FRAME + JPEG_SCAN,
        # a byte of no meaning, which some readers pass over
        GIF_SCREEN + b"\0," + pack("<HHHHB", 0, 0, 0xFF00, 0xFF00, 0),
        GIF_SCREEN + b"\x21\xf9\0" + GIF_PICTURE + b"x" * 44 + b"\0" + GIF_PICTURE,
        b"RIFF    WEBPJUNK" + b"\1\0" * 20,
    ],
)
def test_what_two_readers_might_take_for_two_images_is_none(head: bytes) -> None:
    assert pixels_of(base64.b64encode(head).decode()) is None


@given(st.binary(max_size=200), st.sampled_from(STARTS))
def test_no_head_raises_anything(rest: bytes, start: bytes) -> None:
    pixels_of(base64.b64encode(start + rest).decode())
