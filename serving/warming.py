"""An adapter on its way into engines: put where they find it, and asked for one token of each, which loads it."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from engine.connection import Answer
from engine.failures import from_answer
from engine.replica import Replica
from penstock.errors import BadRequest, EngineError, StateUnavailable
from registry.adapters import offer, rank_of
from registry.local_copy import Placed
from registry.shapes import misshapen
from serving.engines import Generation

T = TypeVar("T")

WARM_S = 60.0
LIST_S = 10.0
OFFER_S = 300.0
UNLOAD_S = 10.0
FOR_GOOD = (400, 404, 422)
PATH = "/v1/completions"
BODY = {"prompt": "a", "max_tokens": 1, "temperature": 0}


async def warm_here(generation: Generation, adapter: Placed, replicas: Sequence[Replica]) -> None:
    """For engines started here. Raises BadRequest for what they will never take, EngineError for what may yet be."""
    launch = generation.supervisors[0].launch
    if generation.lora is None:
        raise BadRequest(
            f"the engine {generation.engine} was started without room for adapters: give it the option `enable-lora: "
            "true`, and restart the gateway"
        )
    if (rank := rank_of(adapter)) > launch.max_lora_rank:
        raise BadRequest(
            f"{adapter.version.reference} has the rank {rank}, and the engine {generation.engine} was started for at "
            f"most {launch.max_lora_rank}: give it the option `max-lora-rank: {rank}`, and restart the gateway"
        )
    if generation.base and (why := await asyncio.to_thread(misshapen, adapter.folder, generation.base.folder)):
        raise BadRequest(f"{adapter.version.reference} does not fit {generation.version}: {why}")
    name = await asyncio.to_thread(generation.offer, adapter)
    await warm(replicas, name, launch.probe_path, launch.probe_body)


async def warm_elsewhere(engine: str, place: Path, adapter: Placed, replicas: Sequence[Replica]) -> None:
    """For engines that read `place`, which is shared with them. Raises as above, and StateUnavailable."""
    rank_of(adapter)
    models = set(await together([model_of(replica) for replica in replicas]))
    if len(models) > 1:
        raise BadRequest(
            f"the replicas of {engine} serve different models ({', '.join(sorted(models))}): an adapter is of one"
        )
    try:
        async with asyncio.timeout(OFFER_S):
            name = await asyncio.to_thread(offer, adapter, place, models.pop())
    except TimeoutError as error:
        raise StateUnavailable(f"registry.adapters: {place} has not taken {adapter.version.reference} yet") from error
    except OSError as error:
        raise StateUnavailable(f"registry.adapters: {place} cannot be written to: {error}") from error
    await warm(replicas, name)


async def warm(replicas: Sequence[Replica], name: str, path: str = PATH, body: Mapping[str, Any] = BODY) -> None:
    """A token of each. One that fails, as long as others do not, will load it when it is asked."""
    await together([one_token(replica, path, {**body, "model": name}) for replica in replicas])


async def one_token(replica: Replica, path: str, body: Mapping[str, Any]) -> None:
    answer = await replica.client.ask("POST", path, orjson.dumps(dict(body)), timeout_s=WARM_S)
    if answer.status == 200:
        return
    said = from_answer(answer.status, answer.body).message
    if answer.status in FOR_GOOD:
        raise BadRequest(f"{replica.name} does not take {body['model']}: {said} Its log says why.")
    raise EngineError(f"{replica.name}, asked for {body['model']}: {said}")


async def model_of(replica: Replica) -> str:
    """What an engine elsewhere was started with, as it tells."""
    answer: Answer = await replica.client.ask("GET", "/v1/models", timeout_s=LIST_S)
    try:
        listed = orjson.loads(answer.body)["data"]
        return next(str(model["root"]) for model in listed if not model.get("parent"))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise EngineError(f"{replica.name} does not say what it was started with") from error


async def together(asked: Sequence[Awaitable[T]]) -> list[T]:
    """What those said that answered. Raises what one says is wrong for good; EngineError only where all fail."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    lasting = [error for error in errors if not isinstance(error, EngineError)]
    if lasting or (errors and len(errors) == len(answers)):
        raise (lasting or errors)[0]
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def unload(replicas: Sequence[Replica], name: str) -> None:
    """Those that cannot be asked forget it when they restart."""
    body = orjson.dumps({"lora_name": name})
    asked = [replica.client.ask("POST", "/v1/unload_lora_adapter", body, timeout_s=UNLOAD_S) for replica in replicas]
    await asyncio.gather(*asked, return_exceptions=True)
