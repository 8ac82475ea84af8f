"""Where this installation keeps its state: PENSTOCK_HOME, by default the platform's data directory."""

import os
import shutil
import tempfile
from pathlib import Path

# sun_path of a Unix socket holds 108 bytes; the longest name below the run folder takes about half of it.
LONGEST_RUN_DIR = 60


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
    """A folder for this process's sockets; those that killed processes left behind are removed."""
    runs = home() / "run"
    for left in runs.iterdir() if runs.is_dir() else ():
        if left.name.isdigit() and not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)
    path = runs / str(os.getpid())
    if len(str(path)) > LONGEST_RUN_DIR:
        return Path(tempfile.mkdtemp(prefix="penstock-"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
