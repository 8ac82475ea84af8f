"""A task put to a `Chat`: several items at once, every one recorded, whatever becomes of it."""

import asyncio
import math
import time
from collections.abc import Callable

from evals.metrics import METRICS
from evals.runs import Head, Record, Run
from evals.tasks import Item, Task, written
from penstock.chat import Chat, ChatRequest, Message, silent
from penstock.errors import (
    EngineRefused,
    EngineUnavailable,
    Forbidden,
    InvalidKey,
    ModelNotFound,
    PenstockError,
    StateUnavailable,
)

CONCURRENCY = 8
TRIES = 5
LONGEST_WAIT_S = 300


def head(
    task: Task, model: str, base_url: str | None = None, served: str | None = None, composition: str | None = None
) -> Head:
    return Head(task.name, task.metric, model, task.digest, len(task.items), base_url, served, composition)


async def ask_all(
    task: Task, chat: Chat, run: Run, concurrency: int = CONCURRENCY, told: Callable[[Record], None] = lambda _: None
) -> None:
    """Asks what the run has no answer to. Raises PenstockError where no item can be answered: for a wrong key, a model
    that is not there, a server that has answered nothing yet or says to come back much later; whatever else goes wrong
    is the item's own and stands in its record."""
    waiting = iter([item for item in task.items if item.id not in run.answered])

    async def worker() -> None:
        for item in waiting:
            record = await ask(task, item, chat, run)
            run.add(record)
            told(record)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def ask(task: Task, item: Item, chat: Chat, run: Run) -> Record:
    """Waits and asks again where it is told when that is worth it."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return await answered(task, item, chat, run.head.model)
        except (InvalidKey, Forbidden, EngineRefused, ModelNotFound):
            raise
        except PenstockError as error:
            if (error.retry_after_s or 0) > LONGEST_WAIT_S:
                raise later(error) from error
            if error.retry_after_s is not None and left:
                await asyncio.sleep(error.retry_after_s)
                continue
            if isinstance(error, EngineUnavailable) and not run.answered:
                raise
            return Record(item.id, error=f"{type(error).__name__}: {error.message}")
        except Exception as error:  # whatever it is, the other items are still to be asked
            return Record(item.id, error=f"{type(error).__name__}: {error}")
    raise AssertionError("the last try returns")


async def answered(task: Task, item: Item, chat: Chat, model: str) -> Record:
    extra = {**task.sampling, **({"tools": list(item.tools)} if item.tools else {})}
    request = ChatRequest(model=model, messages=[Message(**one) for one in item.messages], **extra)
    began = time.perf_counter()
    reply = await chat(request, silent)
    latency_s = time.perf_counter() - began
    output = written(reply.message.model_dump())
    return Record(
        item.id,
        score=METRICS[task.metric](output, item.answers),
        output=output,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
        latency_s=round(latency_s, 4),
    )


def later(error: PenstockError) -> PenstockError:
    minutes = math.ceil((error.retry_after_s or 0) / 60)
    when = f"{minutes} minutes" if minutes < 120 else f"{math.ceil(minutes / 60)} hours"
    return StateUnavailable(
        f"{error.message} (the server says to ask again in {when}: with --out FILE a second run goes on from here)"
    )
