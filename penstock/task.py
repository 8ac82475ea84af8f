"""A task by its name: a family of the demo's held-out items, or a file."""

from dataclasses import replace
from pathlib import Path

from evals.metrics import METRICS
from evals.tasks import Task, load
from penstock.errors import BadRequest
from training.data import ADAPTED, FAMILIES
from training.held_out import task as held_out

HELD_OUT_ITEMS = 100


def named(task: str, metric: str | None, limit: int | None, family_items: int = HELD_OUT_ITEMS) -> Task:
    """The first `limit` items; without one `family_items` of a family, and all of a file. Raises BadRequest."""
    if metric and metric not in METRICS:
        raise BadRequest(f"no metric is called {metric!r}: use one of {', '.join(METRICS)}")
    if task in FAMILIES | ADAPTED:
        found = held_out(task, limit or family_items)
        return replace(found, metric=metric) if metric else found
    path = Path(task)
    if not path.is_file():
        raise BadRequest(f"{task!r} is neither a file nor one of the built-in tasks: {', '.join(FAMILIES | ADAPTED)}")
    return load(path, metric).first(limit)
