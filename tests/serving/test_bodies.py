"""Every malformed body is a 400 that names its parameter; every well-formed one passes."""

import functools
import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from penstock.errors import BadRequest
from serving import bodies
from serving.bodies import ChatCompletions, parse
from serving.plain_chat import PLAIN_FIELDS, PLAIN_ROLES, is_plain_chat

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def refused(body: Any, shape: type[bodies.Routed] = bodies.ChatCompletions) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(json.dumps(body).encode(), shape)
    return caught.value


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 3}]}]}, "messages[0].tool_calls[0].id"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": {"type": "function"}}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_a_malformed_chat_body_names_the_parameter(change: dict[str, Any], param: str) -> None:
    assert refused(ASK | change).param == param


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": None, "tools": None, "stop": None, "stream_options": None},
        {"temperature": 0, "top_p": 1, "seed": -5, "stop": "x", "logit_bias": {"5": -100}},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
        {"top_k": 5, "min_p": 0.1, "structured_outputs": {"choice": ["a"]}, "chat_template_kwargs": {}},
    ],
)
def test_a_well_formed_chat_body_passes_whole(change: dict[str, Any]) -> None:
    assert parse(json.dumps(ASK | change).encode(), bodies.ChatCompletions) == ASK | change


@pytest.mark.parametrize(
    ("shape", "body", "param"),
    [
        (bodies.Completions, {"model": "m"}, "prompt"),
        (bodies.Completions, {"model": "m", "prompt": {}}, "prompt"),
        (bodies.Completions, {"model": "m", "prompt": "x", "logprobs": 6}, "logprobs"),
        (bodies.Embeddings, {"model": "m"}, "input"),
        (bodies.Embeddings, {"model": "m", "input": []}, "input"),
        (bodies.Embeddings, {"model": "m", "input": "x", "dimensions": 0}, "dimensions"),
        (bodies.Rerank, {"model": "m", "documents": ["x"]}, "query"),
        (bodies.Tokenize, {"model": "m"}, "prompt"),
        (bodies.Detokenize, {"model": "m", "tokens": [-1]}, "tokens[0]"),
        (bodies.Embeddings, {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format"),
        (bodies.Responses, {"model": "m", "input": 5}, "input"),
        (bodies.Responses, {"model": "m", "input": "x", "tools": [{}]}, "tools[0].type"),
        (bodies.Responses, {"model": "m", "input": "x", "text": 5}, "text"),
        (bodies.Responses, {"model": "m", "input": "x", "truncation": "x"}, "truncation"),
        (bodies.Messages, {"model": "m", "messages": [{"role": "user", "content": "x"}]}, "max_tokens"),
        (bodies.CountTokens, {"model": "m", "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_the_other_routes_name_the_parameter_too(shape: type[bodies.Routed], body: Any, param: str) -> None:
    assert refused(body, shape).param == param


def test_a_million_bad_items_cost_no_more_than_the_first() -> None:
    assert refused({"model": "m", "messages": [{}] * 1_000_000}).param == "messages[0].role"


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_json_object_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(raw, bodies.ChatCompletions)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({name for name in bodies.ChatCompletions.model_fields} | {"prompt", "input", "query", "tokens"})
SHAPES = [bodies.ChatCompletions, bodies.Completions, bodies.Embeddings, bodies.Rerank, bodies.Score]
SHAPES += [bodies.Tokenize, bodies.Detokenize, bodies.Responses, bodies.Messages, bodies.CountTokens]


@given(st.sampled_from(SHAPES), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6))
def test_no_body_at_all_raises_anything_else(shape: type[bodies.Routed], body: dict[str, Any]) -> None:
    with suppress(BadRequest):
        parse(json.dumps(body).encode(), shape)


# OpenAI's published schema (OpenAPI 2.3.0, MIT), wherever a copy lies beside the repository.
OPENAPI = next(Path(__file__).parents[3].glob("*/data/openai-openapi.json.gz"), None)


# Whose insides the engine checks: a gateway that knew them all would refuse tomorrow's.
DEEP = {"messages", "tools", "tool_choice", "response_format", "functions", "function_call", "web_search_options"}
DEEP |= {"input", "include", "text", "reasoning", "prompt_cache_options", "stream_options", "context_management"}
DEEP |= {"max_output_tokens"}  # the schema's 16 at least is OpenAI's own, not vLLM's


@pytest.mark.skipif(OPENAPI is None, reason="no copy of OpenAI's OpenAPI document lies beside the repository")
@pytest.mark.parametrize(
    ("name", "shape", "body"),
    [
        ("CreateChatCompletionRequest", bodies.ChatCompletions, ASK),
        ("CreateCompletionRequest", bodies.Completions, {"model": "m", "prompt": "x"}),
        ("CreateEmbeddingRequest", bodies.Embeddings, {"model": "m", "input": "x"}),
        ("CreateResponse", bodies.Responses, {"model": "m", "input": "x"}),
    ],
)
@given(data=st.data())
def test_whatever_openais_schema_refuses_is_refused(
    name: str, shape: type[bodies.Routed], body: dict[str, Any], data: st.DataObject
) -> None:
    schema = openai_schema(name)
    field = data.draw(st.sampled_from(sorted(shape.model_fields.keys() - DEEP)))
    changed = body | {field: data.draw(json_values.filter(lambda value: value is not None))}
    if not schema.is_valid(changed):
        refused(changed, shape)


@functools.cache
def openai_schema(name: str) -> Draft202012Validator:
    assert OPENAPI is not None
    document = json.loads(gzip.decompress(OPENAPI.read_bytes()))
    components = json.dumps(document["components"]).replace('"nullable": true', '"x-nullable": true')
    schema = {"$ref": f"#/components/schemas/{name}", "components": json.loads(components)}
    return Draft202012Validator(schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(sorted(PLAIN_ROLES)) | JSON, "content": st.text() | JSON})


@given(
    st.dictionaries(st.sampled_from(sorted(PLAIN_FIELDS)), JSON, max_size=5),
    st.fixed_dictionaries({"model": st.text(), "messages": st.lists(TURN, max_size=3)}),
)
def test_what_is_taken_for_a_plain_chat_is_a_chat(more: dict[str, Any], chat: dict[str, Any]) -> None:
    body = more | chat
    if is_plain_chat(body):
        ChatCompletions.model_validate(body)


def test_the_commonest_chat_is_a_plain_one() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert is_plain_chat({"model": "m", "messages": turns, "stream": True, "max_tokens": 5, "temperature": 0.7})
    assert not is_plain_chat({"model": "m", "messages": turns, "n": 0})
