"""Files and folders that come into their place when they are whole, and are swept up when their maker was killed.

A maker holds a lock (flock) on its draft, which ends with it: what nobody holds is nobody's, however young it is. Where
a file system knows no locks, a draft is nobody's after a day.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

DRAFT = ".draft-"
UNLOCKED_S = 24 * 3600


@contextmanager
def draft_file(parent: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Gone at the end, unless it was moved away."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=parent, prefix=DRAFT)
        if held(descriptor, Path(name)):
            break
        os.close(descriptor)
    with os.fdopen(descriptor, "wb") as writing:
        try:
            yield Path(name), writing
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """Gone at the end with what is in it, unless it was moved away."""
    while True:
        draft = Path(tempfile.mkdtemp(dir=parent, prefix=DRAFT))
        with suppress(FileNotFoundError):  # swept before it was locked
            descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
            if held(descriptor, draft):
                break
            os.close(descriptor)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def held(descriptor: int, draft: Path) -> bool:
    """Whether the draft is the maker's now, and no sweeper's who was quicker."""
    try:
        return locked(descriptor) is not False and os.path.samestat(os.fstat(descriptor), draft.stat())
    except FileNotFoundError:
        return False


def locked(descriptor: int) -> bool | None:
    """False while another holds it; None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def swept(parent: Path, before: float) -> int:
    """Deletes the drafts, files and folders, of makers that were killed, but for those written to since."""
    return sum(sweep(draft, before) for draft in parent.glob(f"{DRAFT}*"))


def sweep(draft: Path, before: float) -> bool:
    try:
        descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, or another user's
        return False
    try:
        if os.fstat(descriptor).st_mtime >= before:
            return False
        mine = locked(descriptor)
        if mine is False or (mine is None and os.fstat(descriptor).st_mtime >= time.time() - UNLOCKED_S):
            return False
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
