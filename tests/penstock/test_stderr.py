"""A log whose reader is slow, gone, or out of room."""

import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.stderr import Unwaiting, pieces


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its two ends."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # the test has closed it
            continue


def test_a_slow_reader_is_not_waited_for_and_gets_whole_lines(pipe: tuple[int, int]) -> None:
    lost: list[int] = []
    stream = Unwaiting(pipe[1], lost.append)
    lines = [f"{number:05} {'x' * 90}\n" for number in range(2000)]
    for start in range(0, 2000, 10):
        stream.write("".join(lines[start : start + 10]))
    os.set_blocking(pipe[0], False)
    read = os.read(pipe[0], 2**20).decode().splitlines(keepends=True)
    assert read == lines[: len(read)]
    assert len(read) + sum(lost) == 2000
    assert lost


def test_a_line_longer_than_a_pipe_takes_in_one_is_written_in_parts(pipe: tuple[int, int]) -> None:
    Unwaiting(pipe[1], lambda lines: pytest.fail(f"{lines} lost")).write("é" * 5000 + "\n")
    assert os.read(pipe[0], 2**20).decode() == "é" * 5000 + "\n"


def test_without_a_reader_lines_are_counted(pipe: tuple[int, int]) -> None:
    lost: list[int] = []
    os.close(pipe[0])
    Unwaiting(pipe[1], lost.append).write("one\ntwo\n")
    assert sum(lost) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is always full")
def test_a_full_disk_is_counted() -> None:
    lost: list[int] = []
    with open("/dev/full", "wb", buffering=0) as full:
        Unwaiting(full.fileno(), lost.append).write("one\n")
    assert lost == [1]


@given(st.lists(st.text("aé", min_size=0, max_size=3000).map(lambda text: text + "\n"), max_size=20))
def test_lines_are_written_in_pieces_that_a_pipe_takes_whole(lines: list[str]) -> None:
    found = list(pieces(lines))
    assert "".join(found) == "".join(lines)
    for piece in found:
        assert piece.endswith("\n")
        assert len(piece.encode()) <= select.PIPE_BUF or piece.count("\n") == 1
