"""SIGHUP, from the first moment of `penstock serve`: kept for whoever will read the configuration again, never the end.

Imported before all that takes long to import.
"""

import signal
from types import FrameType


class Hangup:
    """The handler of SIGHUP until somebody else takes over, and after that."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True


def keep() -> None:
    """From now on SIGHUP does not end this process. Children do not inherit that, as they would an ignored signal."""
    signal.signal(signal.SIGHUP, Hangup())


def ignore() -> None:
    """For a process that is about to end: Python gives a handler up before its very end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
