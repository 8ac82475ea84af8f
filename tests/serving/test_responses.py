"""Composed models on /v1/responses, judged by OpenAI's client and by what a well-formed stream is here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem
from pydantic import BaseModel

from engine.reading import ResponsesReading
from engine.scripted import Scripted
from penstock.chat import Chat, ChatRequest, Delta, Emit, Reply, Usage
from penstock.errors import EngineError
from serving.responses import responses
from tests.serving.conftest import run_gateway
from tests.serving.telling import CALLED, THOUGHT, WEATHER, Telling

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNg+M9QDwADgAF/tOdkBwAAAABJRU5ErkJggg=="
TOOL: Any = {"type": "function", "name": "get", "parameters": WEATHER}
EVERYTHING = (THOUGHT, Delta("Let me "), Delta("look."), *CALLED)


@asynccontextmanager
async def asking(chat: Chat) -> AsyncIterator[AsyncOpenAI]:
    async with (
        run_gateway({"m": chat}, hot=True) as client,
        AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
        ) as caller,
    ):
        yield caller


async def test_a_whole_response_has_an_item_for_each_thing() -> None:
    chat = Telling(EVERYTHING, "tool_calls", usage=Usage(9, 5, 4, (("draft", Usage(3, 2)),), 2))
    async with asking(chat) as caller:
        response = await caller.responses.create(model="m", input="Hello!", instructions="Be brief.", tools=[TOOL])
    thought, said, *calls = response.output
    assert isinstance(thought, ResponseReasoningItem)
    assert thought.content
    assert thought.content[0].text == "Hm. "
    assert isinstance(said, ResponseOutputMessage)
    assert response.output_text == "Let me look."
    assert [
        (call.call_id, call.name, call.arguments) for call in calls if isinstance(call, ResponseFunctionToolCall)
    ] == [
        ("call_a", "get", '{"city": "Oslo"}'),
        ("call_b", "get", '{"city": "Rome"}'),
    ]
    assert (response.status, response.instructions, response.model) == ("completed", "Be brief.", "m")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (9, 5, 14)
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    usage: Any = response.usage.to_dict()
    assert usage["penstock"]["steps"]["draft"]["total_tokens"] == 5


async def test_a_streams_events_come_in_openais_order() -> None:
    async with asking(Telling(EVERYTHING, "tool_calls")) as caller:
        events: list[Any] = [
            event async for event in await caller.responses.create(model="m", input="Hello!", stream=True)
        ]
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output == done
    assert [item.id for item in done] == [
        event.item.id for event in events if event.type == "response.output_item.added"
    ]


async def test_a_stream_tells_what_the_whole_answer_does() -> None:
    async with asking(Telling(EVERYTHING, "tool_calls")) as caller:
        whole = await caller.responses.create(model="m", input="Hello!")
        async with caller.responses.stream(model="m", input="Hello!") as stream:
            final = await stream.get_final_response()
    told: list[list[dict[str, Any]]] = [
        [item.to_dict() | {"id": None} for item in each.output] for each in (whole, final)
    ]
    for items in told:
        for item in items:
            item.pop("parsed_arguments", None)
            for part in item.get("content", ()):
                part.pop("parsed", None)
    assert told[0] == told[1]


class Weather(BaseModel):
    city: str


async def test_a_schema_and_all_else_that_chats_have_reach_the_model_as_theirs() -> None:
    chat = Telling([Delta('{"city": "Oslo"}')])
    async with asking(chat) as caller:
        response = await caller.responses.parse(
            model="m",
            input="Hello!",
            text_format=Weather,
            max_output_tokens=7,
            temperature=0.5,
            top_p=0.9,
            reasoning={"effort": "low", "summary": "auto"},
            tools=[TOOL],
            tool_choice={"type": "function", "name": "get"},
            parallel_tool_calls=False,
            metadata={"a": "b"},
            user="u",
            store=True,
            include=["reasoning.encrypted_content", "message.output_text.logprobs"],
            top_logprobs=3,
            extra_body={"seed": 3, "stop": ["x"]},
        )
    assert response.output_parsed == Weather(city="Oslo")
    wire = chat.wire
    assert wire.pop("response_format")["json_schema"]["name"] == "Weather"
    assert wire == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "get", "parameters": WEATHER}}],
        "tool_choice": {"type": "function", "function": {"name": "get"}},
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "user": "u",
        "logprobs": True,
        "top_logprobs": 3,
        "seed": 3,
        "stop": ["x"],
    }


async def test_a_conversation_becomes_turns() -> None:
    chat = Scripted(["Fine."])
    png = f"data:image/png;base64,{PNG}"
    items: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": png}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "get", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "get", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sun."},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Rain."}]},
        {"role": "assistant", "content": "Both."},
        {"role": "user", "content": "Sure?"},
    ]
    async with asking(chat) as caller:
        response = await caller.responses.create(model="m", input=items, instructions="Be brief.")
    assert response.output_text == "Fine."
    call = {"type": "function", "function": {"name": "get", "arguments": "{}"}}
    assert chat.calls[-1].to_wire()["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": png}}],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning": "Hm.",
            "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Sun."},
        {"role": "tool", "tool_call_id": "c2", "content": "Rain."},
        {"role": "assistant", "content": "Both."},
        {"role": "user", "content": "Sure?"},
    ]


async def test_what_a_response_has_told_can_be_sent_again() -> None:
    chat = Telling(EVERYTHING, "tool_calls")
    async with asking(chat) as caller:
        first = await caller.responses.create(model="m", input="Hello!")
        again: list[Any] = [item.to_dict() for item in first.output]
        results: list[Any] = [
            {"type": "function_call_output", "call_id": call, "output": "Sun."} for call in ("call_a", "call_b")
        ]
        await caller.responses.create(model="m", input=[*again, *results])
    turn = chat.wire["messages"][0]
    assert (turn["content"], turn["reasoning"]) == ("Let me look.", "Hm. ")
    assert [call["id"] for call in turn["tool_calls"]] == ["call_a", "call_b"]


@pytest.mark.parametrize(("why", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_says_why(why: Any, reason: str) -> None:
    async with asking(Telling([Delta("Once")], why)) as caller:
        whole = await caller.responses.create(model="m", input="Hello!")
        events: list[Any] = [
            event async for event in await caller.responses.create(model="m", input="Hello!", stream=True)
        ]
    assert events[-1].type == "response.incomplete"
    for response in (whole, events[-1].response):
        assert (response.status, response.output_text) == ("incomplete", "Once")
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == reason
        assert isinstance(response.output[-1], ResponseOutputMessage)
        assert response.output[-1].status == "incomplete"


async def test_a_failure_in_mid_stream_is_told_in_the_response_and_as_an_event() -> None:
    async with asking(Telling([Delta("Once")], failure=EngineError("it broke"))) as caller:
        events: list[Any] = [
            event async for event in await caller.responses.create(model="m", input="Hello!", stream=True)
        ]
    said, failed, last = events[-3:]
    assert (said.type, failed.type, last.type) == ("response.output_text.delta", "response.failed", "error")
    assert failed.response.status == "failed"
    assert failed.response.error is not None
    assert (failed.response.error.message, last.message, last.code) == ("it broke", "it broke", "engine_error")
    assert [event.sequence_number for event in events] == [*range(len(events))]


async def test_so_is_one_that_nobody_has_foreseen() -> None:
    async def broken(request: ChatRequest, emit: Emit) -> Reply:
        await emit(Delta("Once"))
        raise ZeroDivisionError

    async with asking(broken) as caller:
        for headers in ({}, {"idempotency-key": "one"}):
            stream = await caller.responses.create(model="m", input="Hello!", stream=True, extra_headers=headers)
            events: list[Any] = [event async for event in stream]
            assert [event.type for event in events[-2:]] == ["response.failed", "error"]
            assert "went wrong" in events[-1].message
            assert [event.sequence_number for event in events] == [*range(len(events))]


async def test_a_failure_before_any_event_is_a_status() -> None:
    async with asking(Telling([], failure=EngineError("it broke"))) as caller:
        for stream in (True, False):
            with pytest.raises(openai.APIStatusError) as raised:
                await caller.responses.create(model="m", input="Hello!", stream=stream)
            assert raised.value.status_code == 502


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].image_url",
    ),
    ({"input": [{"role": "wizard", "content": "Hm."}]}, "input[0].role"),
    ({"input": [{"type": "function_call_output", "output": "Sun."}]}, "input[0].call_id"),
    ({"input": []}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"n": 2}, "n"),
]


async def test_what_cannot_be_honoured_is_refused_by_its_name() -> None:
    chat = Telling([Delta("Hello.")])
    async with run_gateway({"m": chat}, hot=True, policy={"unknown_fields": "pass"}) as client:
        for body, param in REFUSED:
            answer = await client.post(PATH, json={"model": "m", "input": "Hello!", **body})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.json()
    assert not chat.asked


async def test_a_stream_is_what_a_well_formed_one_is_here() -> None:
    async with run_gateway({"m": Telling(EVERYTHING, "tool_calls")}, hot=True) as client:
        answer = await client.post(PATH, json={"model": "m", "input": "Hello!", "stream": True})
    reading = ResponsesReading()
    assert reading.feed(answer.content) == answer.content
    assert (reading.over, reading.failure) == (True, None)
    assert "".join(reading.text) == "Let me look."
    assert reading.usage == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


async def test_logprobs_stand_beside_the_text() -> None:
    token = {"token": "Hi", "bytes": [72, 105], "logprob": -0.1, "top_logprobs": []}
    _, shape = responses({"model": "m", "input": "Hello!"}, "m", "r")
    delta = Delta("Hi", logprobs={"content": [token]})
    stream = shape.first() + shape.piece(delta)
    assert b'"logprobs":[{"token":"Hi"' in stream
