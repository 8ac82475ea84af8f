"""/v1/moderations: what a policy's guards think of texts, in OpenAI's shape. Nothing is generated or blocked."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from guards.policy import Made
from penstock.callers import LOCAL
from penstock.chat import ChatRequest, Emit, Reply
from penstock.errors import BadRequest
from penstock.steps import Circumstances, circumstances
from serving.answer import Answer, Asking, asking
from serving.composing import Composition
from serving.exchange import Exchange
from serving.ledger import Cost
from serving.meter import MOST_ANSWERS, Meter
from serving.wire import JSON, Dialect

USUAL = "moderation"
"""The policy where none is named."""
CATEGORIES = (
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/intent "
    "self-harm/instructions sexual sexual/minors violence violence/graphic"
).split()
"""OpenAI's, which its clients look for."""
SAME = {
    "self_harm": "self-harm",
    "child_exploitation": "sexual/minors",
    "violent_crimes": "violence",
    "nonviolent_crimes": "illicit",
    "indiscriminate_weapons": "illicit/violent",
    "dangerous": "illicit",
}
"""What guards call by another name, as far as both mean nearly the same."""


async def silence(request: ChatRequest, emit: Emit) -> Reply:
    raise BadRequest("a policy generates nothing")


class Moderation(Answer):
    """A policy as what is asked by name."""

    def __init__(self, name: str, made: Made) -> None:
        super().__init__(name, silence, Composition([lambda chat: chat]))
        self.made = made

    async def __call__(self, exchange: Exchange, body: Mapping[str, Any], dialect: Dialect) -> None:
        texts = texts_of(body["input"])
        meter = Meter(answers=len(texts) * MOST_ANSWERS)  # each text has its own
        exchange.cost = Cost(meter=meter)
        asking.set(Asking(exchange, body, meter))
        now = Circumstances(exchange.request_id, self.name, exchange.path, exchange.caller or LOCAL)
        exchange.verdicts = now.verdicts
        circumstances.set(now)
        results = [result(await self.made.weighed(text), self.made.kinds) for text in texts]
        document = {"id": f"modr-{exchange.request_id}", "model": self.name, "results": results}
        exchange.send(200, [*JSON, *dialect.headers(exchange.request_id)], orjson.dumps(document))


def texts_of(given: Any) -> list[str]:
    """A string, strings, or the parts of one text. Raises BadRequest for an image: nobody here looks into it."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(text, str) for text in given):
        return list(given)
    for part in given:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRequest("input: guards look at text, and into nothing else", param="input")
    return ["\n".join(part["text"] for part in given)]


def result(found: Mapping[str, float], kinds: Sequence[str]) -> dict[str, Any]:
    scores = dict.fromkeys([*CATEGORIES, *kinds], 0.0)
    for kind, score in found.items():
        for name in (kind, SAME.get(kind, kind)):
            scores[name] = max(score, scores.get(name, 0.0))
    return {
        "flagged": bool(found),
        "categories": {name: score > 0 for name, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
    }
