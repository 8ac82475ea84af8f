"""Composed models on /v1/messages, judged by Anthropic's client and by what a well-formed stream is here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock
from pydantic import BaseModel

from engine.reading import AnthropicReading
from penstock.chat import Chat, Delta, Usage
from penstock.errors import EngineError
from tests.serving.conftest import run_gateway
from tests.serving.telling import CALLED, THOUGHT, WEATHER, Telling

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNg+M9QDwADgAF/tOdkBwAAAABJRU5ErkJggg=="
HELLO: Any = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello!"}]}
TOOL: Any = {"name": "get", "input_schema": WEATHER, "description": "Tells it."}
ADAPTIVE: Any = {"thinking": {"type": "adaptive"}}
EVERYTHING = (THOUGHT, Delta("Let me "), Delta("look."), *CALLED)


@asynccontextmanager
async def asking(chat: Chat) -> AsyncIterator[AsyncAnthropic]:
    async with (
        run_gateway({"m": chat}, hot=True) as client,
        AsyncAnthropic(
            base_url=str(client.base_url), api_key="any", max_retries=0, _strict_response_validation=True
        ) as caller,
    ):
        yield caller


def told(message: Message) -> list[Any]:
    return [block.to_dict() for block in message.content]


async def test_a_whole_message_has_a_block_for_each_thing() -> None:
    chat = Telling(EVERYTHING, "tool_calls", usage=Usage(9, 5, 4, (("draft", Usage(3, 2)),)))
    async with asking(chat) as caller:
        message = await caller.messages.create(**HELLO, **ADAPTIVE, tools=[TOOL])
    thought, said, *calls = message.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(said, TextBlock)
    assert (thought.thinking, said.text) == ("Hm. ", "Let me look.")
    assert [(call.id, call.name, call.input) for call in calls if isinstance(call, ToolUseBlock)] == [
        ("call_a", "get", {"city": "Oslo"}),
        ("call_b", "get", {"city": "Rome"}),
    ]
    assert (message.role, message.model, message.stop_reason) == ("assistant", "m", "tool_use")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 4, 5)
    breakdown: Any = usage.to_dict()["penstock"]
    assert breakdown["steps"]["draft"]["total_tokens"] == 5


async def test_a_streams_events_come_in_anthropics_order() -> None:
    async with asking(Telling(EVERYTHING, "tool_calls")) as caller:
        events: list[Any] = [event async for event in await caller.messages.create(**HELLO, **ADAPTIVE, stream=True)]
    assert [event.type.removeprefix("content_block_") for event in events] == [
        "message_start",
        *("start", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1, 2, 3]
    assert events[0].type == "message_start"
    assert (events[0].message.usage.input_tokens, events[0].message.usage.output_tokens) == (0, 0)
    assert events[-2].type == "message_delta"
    assert (events[-2].usage.input_tokens, events[-2].usage.output_tokens) == (5, 5)


async def test_a_stream_tells_what_the_whole_answer_does() -> None:
    async with asking(Telling(EVERYTHING, "tool_calls")) as caller:
        whole = await caller.messages.create(**HELLO, **ADAPTIVE)
        async with caller.messages.stream(**HELLO, **ADAPTIVE) as stream:
            final = await stream.get_final_message()
    assert told(final) == told(whole)
    assert (final.stop_reason, final.usage.input_tokens) == (whole.stop_reason, whole.usage.input_tokens)


@pytest.mark.parametrize(
    "thinking", [{}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive", "display": "omitted"}}]
)
async def test_who_has_not_asked_for_the_reasoning_has_the_answer_first(thinking: Any) -> None:
    async with asking(Telling([THOUGHT, Delta("Yes.")])) as caller:
        whole = await caller.messages.create(**HELLO, **thinking)
        async with caller.messages.stream(**HELLO, **thinking) as stream:
            final = await stream.get_final_message()
    assert told(final) == told(whole) == [{"type": "text", "text": "Yes."}]


class Weather(BaseModel):
    city: str


async def test_all_that_chats_have_too_reaches_the_model_as_theirs() -> None:
    chat = Telling([Delta('{"city": "Oslo"}')])
    async with asking(chat) as caller:
        message = await caller.messages.parse(
            **HELLO,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5},
            stop_sequences=["x"],
            metadata={"user_id": "u"},
            thinking={"type": "enabled", "budget_tokens": 1024},
            tools=[TOOL],
            tool_choice={"type": "tool", "name": "get", "disable_parallel_tool_use": True},
            service_tier="auto",
            output_format=Weather,
            output_config={"effort": "low"},
        )
    assert message.parsed_output == Weather(city="Oslo")
    wire = chat.wire
    assert wire.pop("response_format")["json_schema"]["schema"]["properties"]["city"]["type"] == "string"
    assert wire == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["x"],
        "user": "u",
        "thinking_token_budget": 1024,
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "get", "description": "Tells it.", "parameters": WEATHER}}],
        "tool_choice": {"type": "function", "function": {"name": "get"}},
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize(("choice", "said"), [("auto", "auto"), ("any", "required"), ("none", "none")])
async def test_a_choice_of_tools_is_said_in_the_words_of_chats(choice: Any, said: str) -> None:
    chat = Telling([Delta("Yes.")])
    async with asking(chat) as caller:
        await caller.messages.create(**HELLO, tools=[TOOL], tool_choice={"type": choice})
    assert chat.wire["tool_choice"] == said


async def test_a_conversation_becomes_turns() -> None:
    chat = Telling([Delta("Fine.")])
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "abc"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "get", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "Sun."}, {"type": "image", "source": source}],
                },
                {"type": "text", "text": "Sure?"},
            ],
        },
    ]
    async with asking(chat) as caller:
        await caller.messages.create(**HELLO | {"messages": turns})
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city":"Oslo"}'}}
    assert chat.wire["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
        {"role": "assistant", "content": "I look.", "tool_calls": [call], "reasoning": "Hm."},
        {"role": "tool", "content": "Sun.", "tool_call_id": "c1"},
        {"role": "user", "content": [image, {"type": "text", "text": "Sure?"}]},
    ]


@pytest.mark.parametrize(
    ("chat", "reason", "sequence"),
    [
        (Telling([Delta("Once")]), "end_turn", None),
        (Telling([Delta("Once")], "length"), "max_tokens", None),
        (Telling([Delta("Once")], "content_filter"), "refusal", None),
        (Telling([Delta("Once")], stopped_by="x"), "stop_sequence", "x"),
        (Telling([*CALLED]), "tool_use", None),
        (Telling([*CALLED], "length"), "max_tokens", None),
    ],
)
async def test_an_answer_says_why_it_ended(chat: Telling, reason: str, sequence: str | None) -> None:
    async with asking(chat) as caller:
        whole = await caller.messages.create(**HELLO)
        async with caller.messages.stream(**HELLO) as stream:
            final = await stream.get_final_message()
    for message in (whole, final):
        assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


async def test_an_answer_without_a_word_has_an_empty_text() -> None:
    async with asking(Telling([])) as caller:
        assert told(await caller.messages.create(**HELLO)) == [{"type": "text", "text": ""}]


async def test_a_failure_in_mid_stream_is_an_error_event() -> None:
    async with asking(Telling([Delta("Once")], failure=EngineError("it broke"))) as caller:
        with pytest.raises(anthropic.APIStatusError, match="it broke"):
            async for _ in await caller.messages.create(**HELLO, stream=True):
                pass


LAST: list[Any] = [*HELLO["messages"], {"role": "assistant", "content": "Well,"}]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
    ({"messages": LAST}, "messages[1]"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"output_config": {"task_budget": 5}}, "output_config.task_budget"),
    ({"context_management": {"edits": [{"type": "clear"}]}}, "context_management"),
    ({"speed": "fast"}, "speed"),
    ({"container": "c"}, "container"),
    ({"n": 2}, "n is not for"),
]


async def test_what_cannot_be_honoured_is_refused_by_its_name() -> None:
    chat = Telling([Delta("Hello.")])
    async with run_gateway({"m": chat}, hot=True, policy={"unknown_fields": "pass"}) as client:
        for body, param in REFUSED:
            answer = await client.post(PATH, json=HELLO | body)
            error = answer.json()
            assert (answer.status_code, error["error"]["type"]) == (400, "invalid_request_error"), error
            assert param in error["error"]["message"]
    assert not chat.asked


async def test_a_stream_is_what_a_well_formed_one_is_here() -> None:
    async with run_gateway({"m": Telling(EVERYTHING, "tool_calls")}, hot=True) as client:
        answer = await client.post(PATH, json=HELLO | {"stream": True})
    reading = AnthropicReading()
    assert reading.feed(answer.content) == answer.content
    assert (reading.over, reading.failure) == (True, None)
    assert "".join(reading.text) == "Let me look."
    assert reading.usage
    assert (reading.usage["input_tokens"], reading.usage["output_tokens"]) == (5, 5)
