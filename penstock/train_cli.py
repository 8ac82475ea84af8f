"""`penstock train`: the script that a recipe names, as the process that the command becomes.

So it has the command's process id: signals reach it and its exit status is the command's.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import yaml

from penstock.config import nearest
from penstock.shell import fail

SCRIPTS = ("tokenizer", "pretrain", "sft", "dpo", "quantize")


def run(recipe: Path, out: Path, resume: bool) -> NoReturn:
    words = [sys.executable, "-P", "-m", f"training.{script_of(recipe)}", str(recipe), "--out", str(out)]
    if not find_spec("torch"):
        fail("training needs torch, which is not installed here: run `make install`")
    sys.stdout.flush()
    os.execv(sys.executable, words + ["--resume"] * resume)


def script_of(recipe: Path) -> str:
    try:
        said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{recipe} is not YAML: {error}")
    script = said.get("script") if isinstance(said, dict) else None
    there = [name for name in SCRIPTS if find_spec(f"training.{name}")]
    if script not in there:
        near = nearest(script, there) if isinstance(script, str) else ""
        fail(f"{recipe}: `script` must name one of {', '.join(there)}, not {script!r}{near}")
    return str(script)
