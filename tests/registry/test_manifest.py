"""Manifests: one digest for one content, and no path that leads out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadRequest
from registry.manifest import File, Manifest

FILE = File("a" * 64, 3)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "\udce4",
        "a" * 513,
    ],
)
def test_a_path_that_leads_out_or_is_none_is_refused(path: str) -> None:
    with pytest.raises(BadRequest, match="cannot be the path"):
        Manifest({path: FILE})


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(BadRequest, match="no SHA-256"):
        Manifest({"a": File(digest, 3)})


def test_a_file_cannot_be_a_folder_too() -> None:
    with pytest.raises(BadRequest, match="cannot be a folder too"):
        Manifest({"a": FILE, "a/b": FILE})


def test_the_order_of_files_is_no_part_of_the_digest_and_all_else_is() -> None:
    one = Manifest({"a": FILE, "b": File("b" * 64, 4)})
    assert one.digest == Manifest({"b": File("b" * 64, 4), "a": FILE}).digest
    others = [
        Manifest({"a": FILE}),
        Manifest({"c": FILE, "b": File("b" * 64, 4)}),
        Manifest({"a": FILE, "b": File("b" * 64, 5)}),
        Manifest({"a": FILE, "b": File("c" * 64, 4)}),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    assert (one.size, one.blobs) == (7, {"a" * 64: 3, "b" * 64: 4})


@given(st.text(max_size=40))
def test_whatever_the_path_it_stays_below_or_is_refused(path: str) -> None:
    from pathlib import Path

    try:
        Manifest({path: FILE})
    except BadRequest:
        return
    assert Path("/root", path).resolve().is_relative_to("/root")
    assert Path("/root", path).resolve() != Path("/root")


@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.integers(0, 9)))
def test_what_is_written_is_read_again(sizes: dict[str, int]) -> None:
    manifest = Manifest({path: File(f"{size}" * 64, size) for path, size in sizes.items()})
    again = Manifest.read(manifest.plain)
    assert again == manifest
    assert again.digest == manifest.digest
