"""What a request may ask for: fields, counts, sizes, grammars, whose cache."""

import ast
import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from engine.affinity import hint_of
from engine.sim import simulator
from penstock.callers import LOCAL, Caller, Scope
from penstock.config import Policy as Limits
from penstock.errors import BadRequest, Forbidden, PenstockError
from serving import fields
from serving.policy import Policy
from serving.routes import HOT_PATHS
from tests.serving.conftest import Running

USER = Caller("1", "ada", "ada")
OTHER = Caller("2", "bob", "bob")
SOON_S = 0.05

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
LEAST: dict[str, dict[str, Any]] = {
    fields.CHAT: CHAT,
    fields.TEXT: {"model": "m", "prompt": "hi"},
    fields.RESPONSES: {"model": "m", "input": "hi"},
    fields.MESSAGES: {**CHAT, "max_tokens": 5},
    fields.COUNT_TOKENS: CHAT,
    fields.EMBEDDINGS: {"model": "m", "input": "hi"},
    fields.RERANK: {"model": "m", "query": "hi", "documents": ["a"]},
    fields.SCORE: {"model": "m", "text_1": "hi", "text_2": ["a"]},
    fields.TOKENIZE: {"model": "m", "prompt": "hi"},
    fields.DETOKENIZE: {"model": "m", "tokens": [1]},
    fields.MODERATIONS: {"model": "m", "input": "hi"},
}


def with_scope(scope: Scope) -> Caller:
    return replace(USER, scopes=USER.scopes | {scope})


def applied(body: Any, path: str = fields.CHAT, caller: Caller = USER, **limits: Any) -> dict[str, Any]:
    return Policy(Limits(**{"cache_salt": False} | limits)).applied(path, body, caller)


def refused(body: Any, path: str = fields.CHAT, caller: Caller = USER, **limits: Any) -> PenstockError:
    with pytest.raises((BadRequest, Forbidden)) as caught:
        applied(body, path, caller, **limits)
    assert len(caught.value.message) < 500
    return caught.value


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


SLOW = {"type": "string", "pattern": "(a+)+$" * 17_000}
ADDED = {
    "type": "tool_addition",
    "tool": {"type": "tool_definition", "definition": {"name": "f", "input_schema": SLOW}},
}
LONG_PATTERNS: list[tuple[str, dict[str, Any]]] = [
    (fields.CHAT, {"tools": [tool({"properties": {"a": SLOW}})]}),
    (fields.CHAT, {"tools": [tool({"patternProperties": {SLOW["pattern"]: {}}})]}),
    (fields.CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SLOW}}}),
    (fields.CHAT, {"structured_outputs": {"regex": SLOW["pattern"]}}),
    (fields.CHAT, {"structured_outputs": {"json": SLOW}}),
    (fields.CHAT, {"structured_outputs": {"json": json.dumps(SLOW)}}),
    (fields.TEXT, {"structured_outputs": {"json_object": True, "whitespace_pattern": SLOW["pattern"]}}),
    (fields.RESPONSES, {"text": {"format": {"type": "json_schema", "name": "n", "schema": SLOW}}}),
    (fields.RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": SLOW}]}),
    (fields.MESSAGES, {"tools": [{"name": "f", "input_schema": SLOW}]}),
    (fields.MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": SLOW}}}),
    (fields.COUNT_TOKENS, {"tools": [{"name": "f", "input_schema": SLOW}]}),
    (fields.MESSAGES, {"messages": [{"role": "system", "content": [ADDED]}]}),
    (fields.TOKENIZE, {"tools": [tool(SLOW)]}),
]


@pytest.mark.parametrize(("path", "change"), LONG_PATTERNS)
def test_a_slow_pattern_of_100_kilobytes_is_refused_at_once_wherever_it_stands(path: str, change: Any) -> None:
    began = time.perf_counter()
    error = refused(LEAST[path] | change, path)
    assert time.perf_counter() - began < SOON_S
    assert error.param
    assert error.param.startswith(next(iter(change)))


def test_a_pattern_within_the_bounds_passes_and_costs_no_more_for_being_slow() -> None:
    body = CHAT | {"tools": [tool({"type": "string", "pattern": "(a+)+$"})]}
    assert applied(body) is body
    body = CHAT | {"tools": [tool({"type": "string", "pattern": "(a+)+$" * 17_000})]}
    began = time.perf_counter()
    assert applied(body, max_pattern_chars=10**6, max_schema_bytes=10**6) is body
    assert time.perf_counter() - began < SOON_S


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (fields.CHAT, {"n": 9}, "n"),
        (fields.TEXT, {"n": 9}, "n"),
        (fields.TEXT, {"best_of": 9}, "best_of"),
        (fields.TEXT, {"best_of": 2}, "best_of"),
        (fields.CHAT, {"max_tokens": 101}, "max_tokens"),
        (fields.CHAT, {"max_completion_tokens": 101, "max_tokens": 5}, "max_completion_tokens"),
        (fields.TEXT, {"max_tokens": 101}, "max_tokens"),
        (fields.RESPONSES, {"max_output_tokens": 101}, "max_output_tokens"),
        (fields.MESSAGES, {"max_tokens": 101}, "max_tokens"),
        (fields.CHAT, {"stop": ["a"] * 5}, "stop"),
        (fields.CHAT, {"stop": "a" * 257}, "stop"),
        (fields.RESPONSES, {"stop": ["a"] * 5}, "stop"),
        (fields.MESSAGES, {"stop_sequences": ["a"] * 5}, "stop_sequences"),
        (fields.MESSAGES, {"stop_sequences": ["a" * 257]}, "stop_sequences"),
        (fields.CHAT, {"tools": [tool({}), tool(deep(40))]}, "tools[1]"),
        (fields.CHAT, {"tools": [tool({"enum": ["a" * 70_000]})]}, "tools[0]"),
        (fields.CHAT, {"tools": [tool({"enum": ["a" * 60_000]})] * 20}, "tools"),
        (fields.TOKENIZE, {"tools": [tool({}), None]}, "tools[1]"),
        (fields.TOKENIZE, {"tools": ["input_schema"]}, "tools[0]"),
        (fields.CHAT, {"structured_outputs": {"grammar": "a" * 70_000}}, "structured_outputs"),
        (fields.CHAT, {"structured_outputs": {"choice": ["a"] * 70_000}}, "structured_outputs"),
        (fields.CHAT, {"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        (fields.CHAT, {"structured_outputs": "x"}, "structured_outputs"),
        (fields.CHAT, {"bad_words": ["a"] * 129}, "bad_words"),
        (fields.CHAT, {"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
        (fields.CHAT, {"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        (fields.CHAT, {"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        (fields.CHAT, {"prompt_logprobs": -1}, "prompt_logprobs"),
        (fields.CHAT, {"messages": [{"role": "user", "content": "a" * 1001}]}, "messages"),
        (fields.CHAT, {"tools": [tool({"description": "a" * 1001})]}, "tools"),
        (fields.TEXT, {"prompt": [1] * 300}, "prompt"),
        (fields.RESPONSES, {"input": [{"role": "user", "content": "a" * 1001}]}, "input"),
        (fields.MESSAGES, {"system": [{"type": "text", "text": "a" * 1001}]}, "system"),
        (fields.EMBEDDINGS, {"input": ["a" * 600, "b" * 600]}, "input"),
        (fields.TEXT, {"prompt": ["a"] * 9}, "prompt"),
        (fields.TEXT, {"prompt": [[1]] * 9}, "prompt"),
        (fields.TEXT, {"prompt_embeds": ["a"] * 9}, "prompt_embeds"),
        (fields.EMBEDDINGS, {"input": ["a"] * 10}, "input"),
        (fields.EMBEDDINGS, {"input": [[1]] * 10}, "input"),
        (fields.RERANK, {"documents": ["a"] * 10}, "documents"),
        (fields.RERANK, {"documents": {"content": [{"type": "text", "text": "a"}] * 10}}, "documents"),
        *((fields.SCORE, {name: ["a"] * 10}, name) for name in fields.BATCHES[fields.SCORE]),
    ],
)
def test_what_is_too_much_is_refused_and_named(path: str, change: Any, param: str) -> None:
    error = refused(LEAST[path] | change, path, max_tokens=100, max_prompt_chars=1000, max_prompts=8, max_inputs=9)
    assert (error.status, error.param) == (400, param)


def test_as_many_prompts_or_inputs_as_engines_and_clients_are_used_to_are_taken_and_no_more() -> None:
    for path, name, most, limit in (
        (fields.TEXT, "prompt", 1024, "max_prompts"),
        (fields.EMBEDDINGS, "input", 2048, "max_inputs"),
        (fields.RERANK, "documents", 2048, "max_inputs"),
    ):
        for item in ("a", [1]) if path != fields.RERANK else ("a",):
            body = LEAST[path] | {name: [item] * most}
            assert applied(body, path) is body
            body = LEAST[path] | {name: [item] * 100_000}
            said = f"{name}: 100000 are given, {most} at most in a request (policy.{limit}): send several"
            assert refused(body, path).message == said
            unbounded: dict[str, Any] = {limit: None}
            assert applied(body, path, **unbounded) is body


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (fields.CHAT, {"n": 8, "stop": ["a"] * 4, "temperature": 1}),
        (fields.CHAT, {"tools": [tool(deep(10))] * 60, "tool_choice": "auto"}),
        (fields.CHAT, {"modalities": ["text"], "functions": None, "function_call": None}),
        (fields.CHAT, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [2], "min_tokens": 1}),
        (fields.CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "structured_outputs": {"regex": "a+"}}),
        (fields.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
        (fields.CHAT, {"priority": 0, "return_token_ids": False, "prompt_embeds": None}),
        (fields.TEXT, {"best_of": 1, "echo": True, "suffix": None}),
        (fields.TEXT, {"prompt": [1] * 5000}),
        (fields.EMBEDDINGS, {"input": [1] * 5000}),
        (fields.RESPONSES, {"background": False, "store": True, "previous_response_id": None}),
        (fields.RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": {}}]}),
        (fields.MESSAGES, {"tools": [{"name": "f", "input_schema": {}}], "metadata": {"user_id": "x"}}),
        (fields.MESSAGES, {"tools": [{"type": "custom", "name": "f", "input_schema": {}}]}),
        (fields.RERANK, {"documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}),
    ],
)
def test_what_is_within_the_bounds_passes_as_the_same_object(path: str, change: Any) -> None:
    body = LEAST[path] | change
    assert applied(body, path) is body


RAW_EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    *((fields.CHAT, {name: "x"}) for name in fields.RAW),
    (fields.TEXT, {"prompt": None, "prompt_embeds": "gASV"}),
    (fields.MESSAGES, {"kv_transfer_params": {"do_remote_decode": True}}),
    (fields.RESPONSES, {"previous_response_id": "resp_1"}),
    (fields.EMBEDDINGS, {"mm_processor_kwargs": {"a": 1}}),
    (fields.TOKENIZE, {"chat_template": "{{ messages }}"}),
    (fields.CHAT, {"chat_template_kwargs": {"tokenize": True}}),
    (fields.CHAT, {"chat_template_kwargs": {"enable_thinking": [1]}}),
    (fields.COUNT_TOKENS, {"chat_template_kwargs": {"tokenize": True}}),
    (fields.RESPONSES, {"tools": [{"type": "mcp", "server_label": "a", "server_url": "http://10.0.0.1/"}]}),
    (fields.RESPONSES, {"tools": [{"type": "mcp", "server_url": "http://10.0.0.1/", "input_schema": {}}]}),
    (fields.MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "w", "input_schema": {}}]}),
    (fields.RESPONSES, {"tools": [{"type": "code_interpreter"}]}),
    (fields.CHAT, {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "gASV"}]}]}),
    (fields.CHAT, {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "gASV"}]}]}),
    (fields.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "uuid": "of-another"}]}]}),
]


@pytest.mark.parametrize(("path", "change"), RAW_EXAMPLES)
def test_what_reaches_into_the_engine_takes_a_scope(path: str, change: Any) -> None:
    body = LEAST[path] | change
    error = refused(body, path)
    assert error.status == 403
    assert error.param
    assert "raw-fields" in error.message
    assert applied(body, path, with_scope("raw-fields")) is body


@pytest.mark.parametrize("name", sorted(fields.INSTEAD))
def test_what_engines_would_ignore_in_silence_is_refused_to_everybody(name: str) -> None:
    error = refused({**CHAT, name: "x"}, caller=LOCAL)
    assert (error.status, error.param) == (400, name)
    assert fields.INSTEAD[name] in error.message


def test_the_modern_field_is_named() -> None:
    assert "use tools" in refused({**CHAT, "functions": [{}]}).message
    assert "structured_outputs: {regex: ...}" in refused({**CHAT, "guided_regex": "a"}).message
    assert "answers here are text" in refused({**CHAT, "modalities": ["text", "audio"]}).message


def test_an_unknown_field_names_the_nearest_or_passes_as_configured() -> None:
    body = {**CHAT, "temprature": 1}
    error = refused(body, caller=LOCAL)
    assert error.param == "temprature"
    assert "did you mean 'temperature'?" in error.message
    assert applied(body, unknown_fields="pass") is body
    assert refused({**CHAT, "custom_logit_processor": "gASV"}, unknown_fields="pass").status == 403
    assert refused({**CHAT, "x" * 2**20: 1}).param == "x" * 64


@pytest.mark.parametrize("path", [*fields.TOKEN_LIMITS])
def test_where_no_limit_is_given_the_policys_is(path: str) -> None:
    body = {name: value for name, value in LEAST[path].items() if name != "max_tokens"}
    name = fields.TOKEN_LIMITS[path][0]
    assert applied(body, path, max_tokens=100) == {**body, name: 16 if path == fields.TEXT else 100}
    assert applied({**body, name: 7}, path, max_tokens=100) == {**body, name: 7}
    assert applied({**body, name: None}, path, max_tokens=5)[name] == 5
    assert applied(body, path) is body


@pytest.mark.parametrize("path", sorted(fields.SALTED))
def test_tenants_have_salts_of_their_own(path: str) -> None:
    policy = Policy(Limits(), b"secret")
    ours = policy.applied(path, LEAST[path], USER)
    assert {**LEAST[path], "cache_salt": ours["cache_salt"]} == ours
    assert policy.applied(path, LEAST[path], replace(USER, id="3")) == ours
    assert Policy(Limits(), b"secret").applied(path, LEAST[path], USER) == ours
    others = policy.applied(path, LEAST[path], OTHER)["cache_salt"]
    elsewhere = Policy(Limits(), b"another secret").applied(path, LEAST[path], USER)["cache_salt"]
    assert len({ours["cache_salt"], others, elsewhere}) == 3
    assert len(others) == 32
    assert not set(others) & set("@/\\\0")


def test_a_salt_of_the_callers_own_never_becomes_another_tenants() -> None:
    policy = Policy(Limits(), b"secret")
    theirs = policy.applied(fields.CHAT, CHAT, OTHER)
    guessed = policy.applied(fields.CHAT, theirs, with_scope("raw-fields"))
    assert guessed["cache_salt"] not in (theirs["cache_salt"], policy.applied(fields.CHAT, CHAT, USER)["cache_salt"])


def test_there_is_no_salt_where_there_is_one_tenant_or_no_prompt_or_none_is_wanted() -> None:
    assert Policy(Limits(), b"secret").applied(fields.CHAT, CHAT, LOCAL) is CHAT
    for path in LEAST.keys() - fields.SALTED:
        assert Policy(Limits(), b"secret").applied(path, LEAST[path], USER) is LEAST[path]
    assert applied(CHAT, cache_salt=False) is CHAT


def test_equal_prompts_of_two_tenants_share_no_link_of_the_index() -> None:
    policy = Policy(Limits(), b"secret")
    ours, theirs = (hint_of(policy.applied(fields.CHAT, CHAT, caller)).chain for caller in (USER, OTHER))
    assert not set(ours) & set(theirs)
    assert list(ours) == list(hint_of(policy.applied(fields.CHAT, CHAT, USER)).chain)
    assert hint_of({**CHAT, "cache_salt": [1]}).chain == hint_of(CHAT).chain


def test_every_route_with_a_body_has_its_table() -> None:
    assert set(HOT_PATHS.values()) == set(fields.PATHS)


VLLM = importlib.util.find_spec("vllm")
PROTOCOLS: list[tuple[str, str, list[str]]] = [
    (fields.CHAT, "openai/chat_completion", ["ChatCompletionRequest"]),
    (fields.TEXT, "openai/completion", ["CompletionRequest"]),
    (fields.RESPONSES, "openai/responses", ["ResponsesRequest"]),
    (fields.MESSAGES, "anthropic", ["AnthropicMessagesRequest"]),
    (fields.COUNT_TOKENS, "anthropic", ["AnthropicCountTokensRequest"]),
    (fields.EMBEDDINGS, "pooling/embed", ["EmbeddingCompletionRequest", "EmbeddingChatRequest"]),
    (fields.RERANK, "pooling/scoring", ["RerankRequest"]),
    (fields.SCORE, "pooling/scoring", ["ScoreQueriesDocumentsRequest", "ScoreDataRequest", "ScoreTextRequest"]),
    (fields.TOKENIZE, "serve/tokenize", ["TokenizeCompletionRequest", "TokenizeChatRequest"]),
    (fields.DETOKENIZE, "serve/tokenize", ["DetokenizeRequest"]),
]


@pytest.mark.skipif(VLLM is None, reason="vLLM is not installed here")
@pytest.mark.parametrize(("path", "folder", "names"), PROTOCOLS)
def test_every_field_of_the_installed_vllm_stands_in_the_table(path: str, folder: str, names: list[str]) -> None:
    assert VLLM
    assert VLLM.submodule_search_locations
    entrypoints = Path(VLLM.submodule_search_locations[0]) / "entrypoints"
    classes: dict[str, ast.ClassDef] = {}
    for file in (*entrypoints.glob("pooling/*/protocol.py"), entrypoints / folder / "protocol.py"):
        classes |= {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}

    def fields_of(name: str) -> set[str]:
        if name not in classes:
            return set()
        own = {
            line.target.id
            for line in classes[name].body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        return own.union(*(fields_of(base.id) for base in classes[name].bases if isinstance(base, ast.Name)))

    theirs = {field for name in names for field in fields_of(name) if not field.startswith("_")}
    assert len(theirs) > 1
    assert theirs <= fields.known(path)


@pytest.mark.parametrize(
    ("path", "params"),
    [
        (fields.CHAT, chat_create_params.CompletionCreateParamsBase),
        (fields.TEXT, completion_create_params.CompletionCreateParamsBase),
        (fields.RESPONSES, response_create_params.ResponseCreateParamsBase),
        (fields.EMBEDDINGS, embedding_create_params.EmbeddingCreateParams),
        (fields.MESSAGES, message_create_params.MessageCreateParamsBase),
        (fields.MESSAGES, beta_message_params.MessageCreateParamsBase),
        (fields.COUNT_TOKENS, message_count_tokens_params.MessageCountTokensParams),
        (fields.COUNT_TOKENS, beta_count_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_the_official_clients_stands_in_the_table(path: str, params: Any) -> None:
    assert set(params.__annotations__) <= fields.known(path)


@pytest.mark.anyio
async def test_a_key_has_a_salt_of_its_tenant_and_this_machine_has_none(gateway: Running) -> None:
    key = "sk-0123456789abcdef"
    async with simulator() as sim:
        tree = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        body = {**CHAT, "model": "sim"}
        async with gateway(**tree) as client:
            assert (await client.post(fields.CHAT, json=body)).status_code == 200
            assert sim.requests[-1].body == body
        async with gateway(**tree, gateway={"keys": [key]}) as client:
            answers = [await client.post(fields.CHAT, json=body, headers={"x-api-key": key}) for _ in range(2)]
            salts = {request.body["cache_salt"] for request in list(sim.requests)[-2:] if request.raw}
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(salts) == 1


@pytest.mark.anyio
async def test_a_refusal_has_the_callers_dialect_and_reaches_no_engine(gateway: Running) -> None:
    async with simulator() as sim:
        tree = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        async with gateway(**tree, policy={"max_tokens": 10}) as client:
            openais = await client.post(fields.CHAT, json={**CHAT, "model": "sim", "n": 99})
            anthropics = await client.post(fields.MESSAGES, json={**CHAT, "model": "sim", "max_tokens": 11})
            bounded = await client.post(fields.CHAT, json={**CHAT, "model": "sim", "ignore_eos": True})
        assert sim.started == 1
    assert (openais.status_code, openais.json()["error"]["param"]) == (400, "n")
    assert anthropics.json()["error"]["type"] == "invalid_request_error"
    assert "policy.max_tokens" in anthropics.json()["error"]["message"]
    assert bounded.json()["usage"]["completion_tokens"] == 10
