"""Thousands of bodies and headers for every route, drawn from the gateway's own OpenAPI document and mutated: a status
below 500 that stands in the document, and no exception, whatever comes."""

import asyncio
import json
import logging
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.affinity import hint_of
from engine.continuation import is_exact
from engine.sim import simulator
from penstock.callers import LOCAL, SCOPES, Caller
from penstock.config import Config
from penstock.errors import BadRequest, Forbidden, PenstockError
from serving import bodies, fields
from serving.openapi import document
from serving.policy import Policy, Unfetched
from serving.relay import as_json
from serving.routes import ROUTES
from serving.surfaces import SURFACES
from tests.reliability.client import Caller as Client
from tests.reliability.client import post
from tests.serving.conftest import Running
from tests.serving.drawn import drawn, header, mutated, resolved, validator
from tests.serving.test_media import PNG
from tests.serving.test_policy import LEAST

BODIES_A_ROUTE = 2000
COMPARED_A_ROUTE = 150
SENT_A_ROUTE = 1000
SOON_S = 5.0
DELETE = "\x7f"  # in a head it makes it none, which is told in no caller's dialect

IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]}}
# What no schema of ours tells: pieces that reach deeper, into media, grammars and tools.
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
    fields.MODERATIONS: {"input": [{"type": "text", "text": "a"}]},
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
NAMES = sorted({name for path in fields.PATHS for name in fields.known(path)} | {"type", "content", "role", "", "zzz"})
# Of which the document has nothing to say.
OTHER_HEADERS = """authorization x-api-key traceparent tracestate accept content-type expect anthropic-version
anthropic-beta origin cookie x-forwarded-for forwarded range if-none-match te connection""".split()

CALLERS = [LOCAL, Caller("1", "ada", "ada"), Caller("2", "bob", "bob", frozenset(SCOPES))]
ALL_SCOPES = CALLERS[-1]
SERVED: dict[str, Any] = {"engines": {"e": {"kind": "scripted"}}, "models": {"sim": {"engine": "e"}}}
CONFIGS = [
    Config(**SERVED, policy=policy)
    for policy in ({}, {"max_tokens": 64, "max_prompt_chars": 500}, {"unknown_fields": "pass"})
]
POLICIES = [Policy(config.policy) for config in CONFIGS]
DOCUMENTS = [document(ROUTES, config) for config in CONFIGS]


def schema_of(path: str, whole: dict[str, Any] = DOCUMENTS[0]) -> dict[str, Any]:
    schema: dict[str, Any] = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema


def body_of(random: Random, path: str, whole: dict[str, Any] = DOCUMENTS[0]) -> dict[str, Any]:
    """As the document says it, for the model that is served."""
    examples = {**LEAST[path], **RICH[path]}
    body = drawn(random, schema_of(path, whole), whole, examples)
    least = {} if random.random() < 0.1 else LEAST[path]
    return {**least, **body, "model": "sim"}


def odd_body(random: Random, path: str) -> Any:
    return mutated(random, body_of(random, path, random.choice(DOCUMENTS)), NAMES)


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
    raw = json.dumps(odd_body(random, path)).encode()
    body = checked(path, raw, random.choice(POLICIES), random.choice(CALLERS))
    if body and path in SURFACES and not isinstance(body, Unfetched):
        try:
            SURFACES[path](body, "sim", "id")
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
        checked(path, json.dumps(odd_body(random, path)).encode(), POLICIES[0], ALL_SCOPES) is not None
        for _ in range(200)
    )
    assert 10 < passed < 195


@pytest.mark.parametrize("path", fields.PATHS)
def test_what_is_drawn_from_the_document_is_what_it_allows(path: str) -> None:
    random = Random(path)
    for whole in DOCUMENTS:
        allowed = validator(schema_of(path, whole), whole)
        for _ in range(30):
            body = drawn(random, schema_of(path, whole), whole)
            assert not [error.message for error in allowed.iter_errors(body)], body


@pytest.mark.parametrize("path", fields.PATHS)
def test_what_the_document_does_not_allow_is_refused(path: str) -> None:
    """Also to who has every scope; the reverse is not promised."""
    random = Random(path)
    refused = 0
    for policy, whole in zip(POLICIES, DOCUMENTS, strict=True):
        schema = schema_of(path, whole)
        allowed = validator(schema, whole)
        for _ in range(COMPARED_A_ROUTE):
            body = mutated(random, body_of(random, path, whole), NAMES)
            as_good = body
            if isinstance(body, dict) and policy.limits.unknown_fields == "refuse":
                as_good = {name: value for name, value in body.items() if value or name in schema["properties"]}
            wrong = next(allowed.iter_errors(as_good), None)
            if wrong:
                refused += 1
                assert checked(path, json.dumps(body).encode(), policy, ALL_SCOPES) is None, (wrong.message, body)
    assert refused > COMPARED_A_ROUTE / 3


async def status_of(caller: Client, request: bytes) -> tuple[int, bytes]:
    """Of the whole answer, after which the connection is ready for the next; and its body."""
    await caller.send(request)
    status, headers = await caller.head()
    while status < 200:
        status, headers = await caller.head()
    body = await caller.body(headers)
    if headers.get("connection") == "close":
        caller.leave()
    return status, body


def headers_of(random: Random, path: str) -> dict[str, str]:
    """Of the document's parameters a few, and of other headers."""
    whole = DOCUMENTS[0]
    known = [resolved(parameter, whole) for parameter in whole["paths"][path]["post"]["parameters"]]
    found = {of["name"]: header(random, of["schema"]) for of in random.sample(known, random.randrange(3))}
    others = random.sample(OTHER_HEADERS, random.randrange(3))
    return found | {name: header(random, {"type": "string"}) for name in others}


@pytest.mark.anyio
@pytest.mark.parametrize("path", fields.PATHS)
async def test_no_mutated_request_is_answered_with_a_5xx(
    gateway: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(path)
    responses = DOCUMENTS[0]["paths"][path]["post"]["responses"]
    refusals = {
        int(status): validator(content["schema"], DOCUMENTS[0])
        for status, response in responses.items()
        if status != "200" and (content := resolved(response, DOCUMENTS[0])["content"]["application/json"])
    }
    seen = set()
    async with simulator(mean_tokens=4) as sim:
        tree: dict[str, Any] = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        tree["policy"] = {"max_tokens": 64}  # ignore_eos would keep the simulator busy for seconds
        async with gateway(**tree, gateway={"receive_timeout_s": 5}) as client, Client(str(client.base_url)) as caller:
            for _ in range(SENT_A_ROUTE):
                headers, body = headers_of(random, path), odd_body(random, path)
                async with asyncio.timeout(SOON_S):
                    status, said = await status_of(caller, post(body, path, headers))
                assert status < 500, (body, headers)
                if status != 200 and DELETE not in "".join(headers.values()):
                    assert refusals[status].is_valid(json.loads(said)), (status, said, headers)
                seen.add(status)
    assert 400 in seen
    surprises = [record for record in caplog.records if record.name == "asyncio" or record.levelno >= logging.ERROR]
    assert not surprises, [record.getMessage() for record in surprises]
