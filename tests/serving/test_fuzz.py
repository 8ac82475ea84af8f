"""Thousands of mutated bodies and headers for every route: a status below 500 and no exception, whatever comes."""

import asyncio
import copy
import json
import logging
import string
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.affinity import hint_of
from engine.continuation import is_exact
from engine.scripted import Scripted
from engine.sim import simulator
from penstock.callers import LOCAL, SCOPES, Caller
from penstock.config import Policy as Limits
from penstock.errors import BadRequest, Forbidden, PenstockError
from serving import bodies, fields
from serving.answer import Answer
from serving.exchange import Exchange
from serving.policy import Policy, Unfetched
from serving.relay import as_json
from serving.routes import ROUTES
from tests.reliability.client import Caller as Client
from tests.reliability.client import post
from tests.serving.conftest import Running
from tests.serving.test_media import PNG
from tests.serving.test_policy import LEAST

BODIES_A_ROUTE = 2000
SENT_A_ROUTE = 200
SOON_S = 5.0

IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]}}
# Whole requests of every kind, from which mutations take pieces.
RICH: dict[str, dict[str, Any]] = {
    fields.CHAT: {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, IMAGE], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "c", "tool_call_id": "c"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"pattern": "a"}}},
        "structured_outputs": {"regex": "a+"},
        "chat_template_kwargs": {"enable_thinking": True},
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["x"],
        "n": 2,
        "temperature": 0.5,
        "max_tokens": 5,
        "logit_bias": {"1": 1},
        "metadata": {"a": "b"},
    },
    fields.TEXT: {"prompt": ["a", "b"], "max_tokens": 5, "n": 2, "logprobs": 1, "echo": False, "stop": "x"},
    fields.EMBEDDINGS: {"input": ["a", "b"], "dimensions": 8, "encoding_format": "float"},
    fields.RERANK: {"documents": ["a", {"content": [IMAGE]}], "top_n": 1},
    fields.SCORE: {"text_2": [{"content": [IMAGE]}], "truncate_prompt_tokens": 5},
    fields.TOKENIZE: {"add_special_tokens": True, "return_token_strs": True},
    fields.DETOKENIZE: {"tokens": [1, 2, 3]},
    fields.RESPONSES: {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call_output", "call_id": "c", "output": "o"},
        ],
        "instructions": "i",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "stream": True,
        "max_output_tokens": 5,
    },
    fields.MESSAGES: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, BLOCK]}],
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stream": True,
    },
    fields.COUNT_TOKENS: {"messages": [{"role": "user", "content": [BLOCK]}], "system": "s"},
}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e300, "", "x", "x" * 5000, "\x00", "é🌊",
    "data:,", "http://127.0.0.1/", "../../etc/passwd", "{{ 7*7 }}", "'; DROP TABLE keys; --", [], {}, [None], [[]],
    [[[[[[]]]]]], {"": ""}, {"a": {"b": [{}]}}, ["x"] * 300, {"type": "text"}, {"type": ["text"]}, {"type": {}},
    {"url": 5}, {"url": "file:///"}, "sim", "(a+)+$" * 200, {"pattern": "a" * 5000}, [{"role": "user"}],
]  # fmt: skip
NAMES = sorted({name for path in fields.PATHS for name in fields.known(path)} | {"type", "content", "role", "", "zzz"})
HEADERS = """authorization x-api-key x-request-id x-request-timeout-s x-session-id traceparent tracestate accept
content-type expect idempotency-key anthropic-version anthropic-beta origin cookie x-forwarded-for forwarded range
if-none-match te connection""".split()

CALLERS = [LOCAL, Caller("1", "ada", "ada"), Caller("2", "bob", "bob", frozenset(SCOPES))]
POLICIES = [
    Policy(Limits()),
    Policy(Limits(max_tokens=64, max_prompt_chars=500)),
    Policy(Limits(unknown_fields="pass")),
]


def whole(path: str) -> dict[str, Any]:
    return copy.deepcopy({**LEAST[path], **RICH[path], "model": "sim"})


def mutated(random: Random, path: str) -> dict[str, Any]:
    """A request in which a few things are left out, doubled, of another kind or in another place."""
    body = whole(path)
    for name in random.sample(list(body), random.randrange(len(body))):
        if name not in LEAST[path] or random.random() < 0.05:
            del body[name]
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 8))):
        mutate(random, body)
    return body


def mutate(random: Random, body: dict[str, Any]) -> None:
    places = [*places_in(body)]
    if not places:
        return
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = odd(random)
        case 2:
            holder[key] = [holder[key], holder[key]]
        case 3:
            other, name = random.choice(places)
            holder[key] = copy.deepcopy(other[name])
        case 4 if isinstance(holder, dict):
            holder[random.choice(NAMES)] = odd(random)
        case _:
            body[random.choice(NAMES)] = odd(random)


def odd(random: Random) -> Any:
    if random.random() < 0.8:
        value = random.choice(ODD)
        return copy.deepcopy(value)
    return "".join(random.choices(string.printable, k=random.randrange(20)))


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a document, as what holds it and the key or index."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places_in(inner)


def checked(path: str, raw: bytes, policy: Policy, caller: Caller) -> dict[str, Any] | None:
    """All that happens to a body before an engine or a composition has it; None if it is refused."""
    shape = ROUTES[path].shape
    assert shape
    try:
        body = policy.applied(path, bodies.parse(raw, shape), caller)
        as_json(body)
    except (BadRequest, Forbidden) as error:
        short(error)
        return None
    hint_of(body)
    is_exact(path, body)
    return body


def short(error: PenstockError) -> None:
    """A refusal says why, and does not say all that was sent."""
    assert 0 < len(error.message) < 2000


@pytest.mark.parametrize("path", fields.PATHS)
@settings(max_examples=BODIES_A_ROUTE, database=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutated_body_raises_anything_but_a_refusal(path: str, seed: int) -> None:
    random = Random(seed)
    raw = json.dumps(mutated(random, path)).encode()
    body = checked(path, raw, random.choice(POLICIES), random.choice(CALLERS))
    if body and path in (fields.CHAT, fields.TEXT) and not isinstance(body, Unfetched):
        try:
            Answer("sim", Scripted())._asked(Exchange("POST", path, {}), body)
        except BadRequest as error:
            short(error)


@pytest.mark.parametrize("path", fields.PATHS)
@settings(max_examples=300, database=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_nor_does_what_is_no_json(path: str, raw: bytes) -> None:
    checked(path, raw, POLICIES[0], LOCAL)


@pytest.mark.parametrize("path", fields.PATHS)
def test_enough_of_the_mutations_pass_to_mean_something(path: str) -> None:
    random = Random(path)
    passed = sum(
        checked(path, json.dumps(mutated(random, path)).encode(), POLICIES[0], LOCAL) is not None for _ in range(200)
    )
    assert 10 < passed < 195


def header(random: Random) -> str:
    kind = random.randrange(4)
    if kind == 0:
        return "".join(random.choices(string.ascii_letters + string.digits, k=random.randrange(40)))
    if kind == 1:
        return random.choice(
            ["-1", "0", "nan", "1e999", "inf", "5", "100-continue", "close", "null", "*/*", "identity"]
        )
    if kind == 2:
        return "".join(chr(random.randrange(0x20, 0x100)) for _ in range(random.randrange(30)))
    return "x" * random.randrange(3000)


async def status_of(caller: Client, request: bytes) -> int:
    """Of the whole answer, after which the connection is ready for the next."""
    await caller.send(request)
    status, headers = await caller.head()
    while status < 200:
        status, headers = await caller.head()
    await caller.body(headers)
    if headers.get("connection") == "close":
        caller.leave()
    return status


@pytest.mark.anyio
@pytest.mark.parametrize("path", fields.PATHS)
async def test_no_mutated_request_is_answered_with_a_5xx(
    gateway: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(path)
    async with simulator(mean_tokens=4) as sim:
        tree = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        async with gateway(**tree, gateway={"receive_timeout_s": 5}) as client, Client(str(client.base_url)) as caller:
            for _ in range(SENT_A_ROUTE):
                headers = {random.choice(HEADERS): header(random).strip() for _ in range(random.randrange(4))}
                body = mutated(random, path)
                async with asyncio.timeout(SOON_S):
                    assert await status_of(caller, post(body, path, headers)) < 500, (body, headers)
    surprises = [record for record in caplog.records if record.name == "asyncio" or record.levelno >= logging.ERROR]
    assert not surprises, [record.getMessage() for record in surprises]
