"""A task put to a `Chat`: several items at once, every one recorded, whatever becomes of it."""

import asyncio
import time
from collections.abc import Callable

from evals.metrics import METRICS
from evals.runs import Head, Record, Run
from evals.tasks import Item, Task, written
from penstock.chat import Chat, ChatRequest, Message, silent
from penstock.errors import EngineUnavailable, Forbidden, InvalidKey, ModelNotFound, PenstockError

CONCURRENCY = 8
TRIES = 5
LONGEST_WAIT_S = 60


def head(task: Task, model: str) -> Head:
    return Head(task.name, task.metric, model, task.digest, len(task.items))


async def ask_all(
    task: Task, chat: Chat, run: Run, concurrency: int = CONCURRENCY, told: Callable[[Record], None] = lambda _: None
) -> None:
    """Asks what the run has no answer to. Raises PenstockError where no item can be answered: for a wrong key, a model
    that is not there, a server that has answered nothing yet; whatever else goes wrong is the item's own and stands
    in its record."""
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
    extra = {**task.sampling, **({"tools": list(item.tools)} if item.tools else {})}
    request = ChatRequest(model=run.head.model, messages=[Message(**one) for one in item.messages], **extra)
    for left in range(TRIES - 1, -1, -1):
        began = time.perf_counter()
        try:
            reply = await chat(request, silent)
        except (InvalidKey, Forbidden, ModelNotFound):
            raise
        except PenstockError as error:
            if error.retry_after_s is not None and left:
                await asyncio.sleep(min(error.retry_after_s, LONGEST_WAIT_S))
                continue
            if isinstance(error, EngineUnavailable) and not run.answered:
                raise
            return Record(item.id, error=f"{type(error).__name__}: {error.message}")
        output = written(reply.message.model_dump())
        return Record(
            item.id,
            score=METRICS[task.metric](output, item.answers),
            output=output,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
            latency_s=round(time.perf_counter() - began, 4),
        )
    raise AssertionError("the last try returns")
