"""Standard error for a process that must not wait: what cannot be written at once is left out and counted.

A log's reader may stop reading (its disk is full, its terminal is held) or end. A write that waits for it would hold
up every request.
"""

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO


class Unwaiting:
    """A text stream as `logging` uses one. `lost` is told how many lines are left out."""

    def __init__(self, number: int, lost: Callable[[int], object]) -> None:
        """`number`: the file descriptor."""
        self._number = number
        self._lost = lost
        self._poll = select.poll()
        self._poll.register(number, select.POLLOUT)

    def write(self, text: str) -> None:
        for piece in pieces(text.splitlines(keepends=True)):
            if not self._written(piece.encode(errors="backslashreplace")):
                self._lost(piece.count("\n") or 1)

    def flush(self) -> None:
        """There is nothing to flush."""

    def _written(self, data: bytes) -> bool:
        """A pipe that has room at all has it for PIPE_BUF bytes."""
        try:
            for start in range(0, len(data), select.PIPE_BUF):
                if not self._poll.poll(0):
                    return False
                os.write(self._number, data[start : start + select.PIPE_BUF])
        except OSError:  # a full disk, a closed pipe
            return False
        return True


def stderr(lost: Callable[[int], object]) -> Unwaiting | TextIO:
    """This process's; where it is no file, as it is."""
    try:
        return Unwaiting(sys.stderr.fileno(), lost)
    except OSError:
        return sys.stderr


def pieces(lines: Sequence[str]) -> Iterator[str]:
    """Whole lines together, as many as a pipe takes in one: longer writes of several processes would be mixed."""
    piece, size_bytes = "", 0
    for line in lines:
        line_bytes = len(line.encode(errors="backslashreplace"))
        if piece and size_bytes + line_bytes > select.PIPE_BUF:
            yield piece
            piece, size_bytes = "", 0
        piece += line
        size_bytes += line_bytes
    if piece:
        yield piece
