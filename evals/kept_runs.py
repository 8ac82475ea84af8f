"""Runs that are kept by what answered and what it was asked, so that nobody is asked twice.

A run is kept when it is whole: it is written under a name of its own and moved into its place.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson

from evals.candidates import Candidate
from evals.harness import ask_all, head
from evals.runs import Record, Run
from evals.seats import Seat
from evals.tasks import Task
from penstock.errors import BadRequest
from penstock.home import home


def place(candidate: Candidate, engine: str, task: Task) -> Path:
    """By the digests of weights and task, and what is known of the engine: sampling is part of the task's digest."""
    folder = home() / "evals"
    folder.mkdir(mode=0o700, exist_ok=True)
    key = orjson.dumps([*candidate.digests, engine, task.digest])
    return folder / f"{hashlib.sha256(key).hexdigest()[:32]}.jsonl"


def kept(candidate: Candidate, engine: str | None, task: Task) -> Run | None:
    """None where there is none, or only one that is of no use."""
    if engine is None:
        return None
    path = place(candidate, engine, task)
    if not path.is_file():
        return None
    with suppress(BadRequest):
        run = Run.read(path)
        if (run.head.digest, len(run.answered)) == (task.digest, len(task.items)):
            return run
    return None


async def asked(
    candidate: Candidate,
    seat: Seat,
    engine: str | None,
    task: Task,
    concurrency: int,
    told: Callable[[Record], None] = lambda _: None,
) -> Run:
    """Not kept where nothing is known of the engine. Raises PenstockError as `ask_all`."""
    if engine is None:
        run = Run.begin(head(task, seat.model), None)
        await ask_all(task, seat.chat, run, concurrency, told)
        return run
    path = place(candidate, engine, task)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    os.close(descriptor)
    run = Run.begin(head(task, seat.model), Path(draft))
    try:
        await ask_all(task, seat.chat, run, concurrency, told)
        if len(run.answered) == len(task.items):
            os.replace(draft, path)
    finally:
        run.close()
        with suppress(FileNotFoundError):
            os.unlink(draft)
    return run
