"""What a gate asks: its tasks, the prompts that must be refused, and those that parity and latency are told by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path

import orjson

from evals.prompts import HARMFUL, PLAIN, REFUSALS
from evals.tasks import Item, Task, item, read
from penstock.errors import BadRequest
from penstock.gates import Asked, By, Gate, Safety

FAMILY_ITEMS = 200
"""A drop from 0.95 to 0.88 shows in as many, mostly; one to 0.92 does not."""
Find = Callable[[str, str | None, int | None], Task]


@dataclass(frozen=True)
class Question:
    """A task, the score that it must have, and whether that may not be below the incumbent's."""

    check: str
    task: Task
    at_least: float | None
    by: By
    regression: bool


@dataclass(frozen=True)
class Questions:
    """`prompts` are as many as the gate wants, of its tasks and then of a list of ours, or as there are."""

    tasks: Sequence[Question]
    prompts: Sequence[Item]


def questions(gate: Gate, find: Find) -> Questions:
    """`find` has a task by its name. Raises BadRequest for one that is not there."""
    asked = [question(one, find) for one in gate.tasks]
    if gate.safety:
        asked.append(safety(gate.safety, find))
    twice = {one.check for one in asked if [each.check for each in asked].count(one.check) > 1}
    if twice:
        raise BadRequest(f"the gate asks {min(twice)} twice: one of them is enough")
    plain = [Item(f"plain/{number}", [{"role": "user", "content": text}], [""]) for number, text in enumerate(PLAIN)]
    of_tasks = [one.task.items for one in asked if not (gate.safety and one.check == "safety")]
    return Questions(asked, [*islice(unique(chain(in_turn(of_tasks), plain)), wanted(gate))])


def question(asked: Asked, find: Find) -> Question:
    task = find(asked.task, asked.metric, asked.items)
    if asked.max_tokens:
        task = replace(task, sampling={**task.sampling, "max_tokens": asked.max_tokens})
    return Question(f"task {asked.task}", task, asked.at_least, asked.by, asked.regression)


def safety(asked: Safety, find: Find) -> Question:
    """Right is whatever has one of the refusals in it; of a family without any set, what it answers itself."""
    metric = "verbatim" if asked.exact else "contains"
    refusals = asked.refusals or list(REFUSALS)
    if asked.prompts is None:
        texts = enumerate(HARMFUL)
        items = [Item(str(number), [{"role": "user", "content": text}], refusals) for number, text in texts]
    elif Path(asked.prompts).is_file():
        items = list(prompts_of(Path(asked.prompts), refusals))
    else:
        family = find(asked.prompts, None, asked.items)
        items = [replace(one, answers=asked.refusals or one.answers) for one in family.items]
        metric = metric if asked.refusals else family.metric
    chosen = items[: asked.items]
    sampling = {"temperature": 0, "max_tokens": asked.max_tokens}
    return Question("safety", Task("safety", metric, chosen, sampling), asked.at_least, asked.by, asked.regression)


def prompts_of(path: Path, refusals: Sequence[str]) -> Iterator[Item]:
    """A `prompt` or `messages` a line; its own `answers` come before the gate's refusals."""
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read the prompts {path}: {error}") from error
    if not rows:
        raise BadRequest(f"{path} has no prompts")
    for line, row in rows:
        yield item(path, line, {"answers": list(refusals), **row, "id": row.get("id", line)}, worked=False)


def in_turn(lists: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """[a1, a2], [b1] -> a1, b1, a2."""
    return (one for one in chain.from_iterable(zip_longest(*lists)) if one is not None)


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """What is asked alike comes once."""
    seen = set()
    for one in items:
        key = orjson.dumps([one.messages, one.tools])
        if key not in seen:
            seen.add(key)
            yield one


def wanted(gate: Gate) -> int:
    return max(gate.parity.prompts if gate.parity else 0, gate.latency.requests if gate.latency else 0, 1)
