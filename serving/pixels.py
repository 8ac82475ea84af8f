"""How many pixels an image will have once it is unpacked, told by its head: a few kilobytes may become gigabytes.

The formats are those that clients send (PNG, JPEG, GIF, WebP, BMP). An engine's library reads many more, of which
nothing can be told here: they are refused. So is what two readers might take for two different images, and what is cut
into more blocks than any image needs: a head may be a megabyte, and nobody waits while it is read.
"""

import base64
import binascii
import re
from struct import error as StructError
from struct import unpack_from

HEAD_CHARS = 2**20  # a multiple of four; a photograph may have that much about itself before it says how large it is
NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # markers of JPEG among those of frames that are none
START_OF_SCAN = 0xDA
HAVE_LENGTHS = frozenset(range(0xC0, 0x100)) - frozenset(range(0xD0, 0xDA)) - {0xFF}  # the others of JPEG's markers
FILLING = re.compile(rb"\xff+")
GIF_EXTENSION, GIF_COMMENT, GIF_PICTURE = 0x21, 0xFE, 0x2C
MOST_BLOCKS = 4096  # before the picture, whatever the format calls them


def pixels_of(encoded: str) -> int | None:
    """Of an image in base64, as far as it is needed; None for what is none of these formats."""
    try:
        head = base64.b64decode(encoded[:HEAD_CHARS], validate=True)
    except (binascii.Error, ValueError):
        return None
    try:
        width, height = size_of(head)
    except (StructError, IndexError):
        return None
    return width * height


def size_of(head: bytes) -> tuple[int, int]:
    """Raises struct.error or IndexError where it cannot be told."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = png_size(head)
    elif head.startswith(b"\xff\xd8"):
        width, height = jpeg_size(head)
    elif head.startswith((b"GIF87a", b"GIF89a")):
        width, height = gif_size(head)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        width, height = webp_size(head)
    elif head.startswith(b"BM"):
        width, height = unpack_from("<HH" if unpack_from("<I", head, 14)[0] == 12 else "<ii", head, 18)
    else:
        raise IndexError("no image that is known here")
    return abs(width), abs(height)


def png_size(head: bytes) -> tuple[int, int]:
    """Of the one head that there may be: of two, a library would believe the second."""
    width, height = unpack_from(">II", head, 16)
    place = 8
    for _ in range(MOST_BLOCKS):
        length, kind = unpack_from(">I4s", head, place)
        if kind == b"IDAT":
            return width, height
        if (kind == b"IHDR") != (place == 8):
            raise IndexError("no head, or two")
        place += 12 + length
    raise IndexError("too many chunks")


def jpeg_size(head: bytes) -> tuple[int, int]:
    """Of the largest frame that is announced before the picture begins."""
    width = height = 0
    place = 2
    for _ in range(MOST_BLOCKS):
        filled = FILLING.match(head, place)
        if filled is None:
            raise IndexError("no marker")
        place = filled.end() - 1
        mark = head[place + 1]
        if mark == START_OF_SCAN and width:
            return width, height
        (length,) = unpack_from(">H", head, place + 2)
        if mark == START_OF_SCAN or mark not in HAVE_LENGTHS or length < 2:
            raise IndexError("no frame, or a marker that has no place before one")
        if mark <= 0xCF and mark not in NO_FRAME:
            high, wide = unpack_from(">HH", head, place + 5)
            width, height = max(width, wide), max(height, high)
        place += 2 + length
    raise IndexError("too many segments")


def gif_size(head: bytes) -> tuple[int, int]:
    """The screen, or the first picture where that reaches beyond it."""
    width, height, packed = unpack_from("<HHB", head, 6)
    place = 13 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
    inside = False  # an extension: blocks, each with its length before it, until one of none
    for _ in range(MOST_BLOCKS):
        if inside:
            inside = head[place] != 0
            place += head[place] + 1
        elif head[place] == GIF_PICTURE:
            left, top, wide, high = unpack_from("<HHHH", head, place + 1)
            return max(width, left + wide), max(height, top + high)
        elif head[place] == GIF_EXTENSION and (head[place + 2] or head[place + 1] == GIF_COMMENT):
            inside = True
            place += 2
        else:  # junk, or an extension of nothing: some readers go on behind it, and not at the same place
            raise IndexError("no picture")
    raise IndexError("too many blocks")


def webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        (bits,) = unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind != b"VP8 ":
        raise IndexError("no picture")
    width, height = unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF
