"""Where this installation keeps its state: PENSTOCK_HOME, by default the platform's data directory."""

import os
import platform
import shutil
import tempfile
from pathlib import Path

# sun_path of a Unix socket holds 108 bytes; the names below the run folder need some of them.
LONGEST_RUN_DIR = 80


def home() -> Path:
    """The state folder, made on first use, readable by its owner alone."""
    named = os.environ.get("PENSTOCK_HOME")
    if named:
        path = Path(named).expanduser()
    else:
        import platformdirs

        path = Path(platformdirs.user_data_dir("penstock"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def run_dir() -> Path:
    """A folder for this process's sockets; those that killed processes of this machine left behind are removed.

    The machine's name is part of the folder's: containers that share a home count their processes each from 1.
    """
    runs = home() / "run"
    node = platform.node() or "here"
    for left in runs.glob(f"{node}:*"):
        if not Path("/proc", left.name.rpartition(":")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    path = runs / f"{node}:{os.getpid()}"
    if len(os.fsencode(path)) > LONGEST_RUN_DIR:
        return Path(tempfile.mkdtemp(prefix="penstock-"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
