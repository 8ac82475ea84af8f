"""Anthropic's Python client against the real engine, its answers checked against the client's own types."""

from collections.abc import AsyncIterator, Iterator
from typing import Literal

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic, Omit
from anthropic.types import (
    JSONOutputFormatParam,
    Message,
    MessageParam,
    ToolChoiceParam,
    ToolParam,
    ToolUseBlock,
)
from pydantic import BaseModel

from tests.clients.conftest import FORCED_TOKENS, KEY, SCHEMA, Engine, Weather
from tests.conftest import Served

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello!"}]
TOO_LONG = "one two three " * 1000
GREEDY = {"temperature": 0}

TOOL: ToolParam = {"name": "get_weather", "description": "Tells the weather.", "input_schema": SCHEMA}
THE_TOOL: ToolChoiceParam = {"type": "tool", "name": "get_weather"}
ANY_TOOL: ToolChoiceParam = {"type": "any", "disable_parallel_tool_use": True}

# Whatever the weights, the answer is these words, or as long as that.
WORDS: JSONOutputFormatParam = {"type": "json_schema", "schema": {"type": "string", "enum": ["one two three"]}}
LONG_TOKENS = 800
LONG: JSONOutputFormatParam = {
    "type": "json_schema",
    "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": LONG_TOKENS // 2},
}


@pytest.fixture(scope="module")
def client(demo: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=demo.url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
async def async_client(demo: Served) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=demo.url, api_key="any", max_retries=0) as client:
        yield client


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_is_answered_with_its_usage(client: Anthropic) -> None:
    message = client.messages.create(
        model="demo", messages=HELLO, system="Be brief.", max_tokens=100, output_config={"format": WORDS}
    )
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    assert text_of(message) == '"one two three"'
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_max_tokens_bounds_the_answer(client: Anthropic) -> None:
    message = client.messages.create(model="demo", messages=HELLO, max_tokens=3, output_config={"format": WORDS})
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3


def test_an_answer_ends_before_a_stop_sequence_and_says_which(client: Anthropic) -> None:
    message = client.messages.create(
        model="demo",
        messages=HELLO,
        max_tokens=100,
        stop_sequences=["never", " three"],
        output_config={"format": WORDS},
    )
    assert text_of(message) == '"one two'
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " three")


def test_a_stream_joins_to_the_unstreamed_answer(client: Anthropic) -> None:
    whole = client.messages.create(model="demo", messages=HELLO, max_tokens=40, extra_body=GREEDY)
    with client.messages.stream(model="demo", messages=HELLO, max_tokens=40, extra_body=GREEDY) as stream:
        joined = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert joined == text_of(final) == text_of(whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_streams_events_come_in_anthropics_order(client: Anthropic) -> None:
    stream = client.messages.create(
        model="demo", messages=HELLO, max_tokens=100, output_config={"format": WORDS}, stream=True
    )
    events = [event.type for event in stream]
    deltas = events.count("content_block_delta")
    assert deltas > 1
    assert events == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def weather_of(message: Message) -> Weather:
    """The input of the only tool call."""
    (call,) = [block for block in message.content if isinstance(block, ToolUseBlock)]
    assert call.name == "get_weather"
    assert call.id
    return Weather.model_validate(call.input)


@pytest.mark.parametrize("choice", [ANY_TOOL, THE_TOOL], ids=["any", "named"])
def test_a_forced_tool_is_called_with_input_of_its_schema(client: Anthropic, choice: ToolChoiceParam) -> None:
    message = client.messages.create(
        model="demo", messages=HELLO, max_tokens=FORCED_TOKENS, tools=[TOOL], tool_choice=choice
    )
    assert weather_of(message)
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [ANY_TOOL, THE_TOOL], ids=["any", "named"])
def test_a_streamed_tool_call_joins_to_input_of_its_schema(client: Anthropic, choice: ToolChoiceParam) -> None:
    with client.messages.stream(
        model="demo", messages=HELLO, max_tokens=FORCED_TOKENS, tools=[TOOL], tool_choice=choice
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert weather_of(final) == Weather.model_validate_json("".join(pieces))
    assert final.stop_reason == "tool_use"


def test_a_tools_result_is_answered_in_the_next_turn(client: Anthropic) -> None:
    called: list[MessageParam] = [
        *HELLO,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"days": 1}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "It is sunny and warm."}],
        },
    ]
    message = client.messages.create(model="demo", messages=called, max_tokens=4, tools=[TOOL])
    assert message.role == "assistant"
    before = client.messages.count_tokens(model="demo", messages=called[:2], tools=[TOOL])
    after = client.messages.count_tokens(model="demo", messages=called, tools=[TOOL])
    assert after.input_tokens > before.input_tokens


class Place(BaseModel):
    """Without numbers: this client takes their bounds out of the schema it sends."""

    city: Literal["Oslo", "Rome"]
    coastal: bool


def test_an_output_format_binds_the_answer_to_its_schema(client: Anthropic) -> None:
    message = client.messages.parse(model="demo", messages=HELLO, max_tokens=300, output_format=Place)
    assert isinstance(message.parsed_output, Place)


def test_counted_tokens_are_those_of_the_prompt(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="demo", messages=HELLO, system="Be brief.")
    usage = client.messages.create(model="demo", messages=HELLO, system="Be brief.", max_tokens=1).usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert counted.input_tokens == usage.input_tokens + cached
    without = client.messages.count_tokens(model="demo", messages=HELLO)
    assert without.input_tokens < counted.input_tokens


def test_every_answer_bears_its_request_id(client: Anthropic) -> None:
    message = client.messages.create(
        model="demo", messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "of-the-caller"}
    )
    assert message._request_id == "of-the-caller"
    with client.messages.stream(model="demo", messages=HELLO, max_tokens=1) as stream:
        stream.until_done()
        assert stream.request_id is not None
        assert stream.request_id.startswith("req_")


def test_an_unknown_model_is_not_found(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.messages.create(model="dmo", messages=HELLO, max_tokens=1)
    assert raised.value.type == "not_found_error"
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["type"] == "error"
    assert "did you mean 'demo'?" in raised.value.body["error"]["message"]
    assert raised.value.body["request_id"] == raised.value.request_id
    assert raised.value.request_id is not None


def test_a_bad_value_is_refused_and_named(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as raised:
        client.messages.create(model="demo", messages=HELLO, max_tokens=0)
    assert raised.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].role"):
        client.messages.create(model="demo", messages=[{"role": "wizard", "content": "Hm."}], max_tokens=1)  # type: ignore[list-item, misc]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_beyond_the_context_is_refused(client: Anthropic, streamed: bool) -> None:
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(
            model="demo", messages=[{"role": "user", "content": TOO_LONG}], max_tokens=1, stream=streamed
        )
    assert raised.value.type == "invalid_request_error"
    assert "2048" in str(raised.value)


def test_the_served_models_are_listed_and_described(client: Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    model = client.models.retrieve("demo")
    assert (model.type, model.display_name) == ("model", "demo")


def test_a_model_that_is_not_served_is_not_described(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.models.retrieve("dmo")
    assert raised.value.type == "not_found_error"
    assert raised.value.request_id is not None


def x_api_key(key: str) -> dict[str, str | Omit]:
    """The header that older clients and curl send, instead of this client's own."""
    return {"x-api-key": key, "Authorization": Omit()}


def test_a_key_is_taken_from_either_header(keyed: Served) -> None:
    with Anthropic(base_url=keyed.url, api_key=KEY, max_retries=0) as bearer:
        assert bearer.messages.create(model="demo", messages=HELLO, max_tokens=1).role == "assistant"
    with Anthropic(base_url=keyed.url, api_key="any", max_retries=0) as client:
        message = client.messages.create(model="demo", messages=HELLO, max_tokens=1, extra_headers=x_api_key(KEY))
        assert message.role == "assistant"


def test_only_a_known_key_is_let_in(keyed: Served) -> None:
    with Anthropic(base_url=keyed.url, api_key="sk-of-somebody-else", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            client.messages.create(model="demo", messages=HELLO, max_tokens=1)
        assert raised.value.type == "authentication_error"
        other = x_api_key("sk-of-somebody-else")
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model="demo", messages=HELLO, max_tokens=1, extra_headers=other)


@pytest.mark.anyio
async def test_the_async_client_streams(async_client: AsyncAnthropic) -> None:
    async with async_client.messages.stream(
        model="demo", messages=HELLO, max_tokens=100, output_config={"format": WORDS}
    ) as stream:
        pieces = [text async for text in stream.text_stream]
    assert "".join(pieces) == '"one two three"'
    assert len(pieces) > 1


@pytest.mark.anyio
async def test_leaving_a_stream_frees_the_engine(async_client: AsyncAnthropic, engine: Engine) -> None:
    async with engine.freed_after(LONG_TOKENS):
        stream = await async_client.messages.create(
            model="demo", messages=HELLO, max_tokens=1900, output_config={"format": LONG}, stream=True
        )
        for _ in range(10):
            await anext(stream)
        assert engine.figure("running") >= 1
        await stream.close()


@pytest.mark.anyio
async def test_a_client_that_loses_patience_frees_the_engine(async_client: AsyncAnthropic, engine: Engine) -> None:
    impatient = async_client.with_options(timeout=0.5)
    async with engine.freed_after(LONG_TOKENS):
        with pytest.raises(anthropic.APITimeoutError):
            await impatient.messages.create(
                model="demo", messages=HELLO, max_tokens=1900, output_config={"format": LONG}
            )
