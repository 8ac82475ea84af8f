"""LangChain's ChatOpenAI against the real engine."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import anyio
import httpx2
import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.clients.conftest import FORCED_TOKENS, Engine, Weather
from tests.conftest import Served

WORDS = "one two three"
BOUND = {"structured_outputs": {"regex": WORDS}}
LONG_TOKENS = 1900
ENDLESS = {"ignore_eos": True}


@tool(args_schema=Weather)
def get_weather(city: str, days: int, metric: bool) -> str:
    """Tells the weather."""
    return f"{city} is sunny for {days} days."


def chat_openai(demo: Served, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="demo",
        base_url=f"{demo.url}/v1",
        api_key=SecretStr("any"),
        max_retries=0,
        max_completion_tokens=FORCED_TOKENS,
        temperature=1,
        **options,
    )


@pytest.fixture
def model(demo: Served) -> Iterator[ChatOpenAI]:
    with httpx2.Client() as http:
        yield chat_openai(demo, seed=1, http_client=http)


@pytest.fixture
async def async_model(demo: Served) -> AsyncIterator[ChatOpenAI]:
    """With a connection pool of its own: the one that LangChain shares outlives the test's event loop."""
    async with httpx2.AsyncClient() as http:
        yield chat_openai(demo, seed=1, http_async_client=http)


def test_a_message_is_answered_with_its_usage(model: ChatOpenAI) -> None:
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("Hello!")], extra_body=BOUND)
    assert answer.content == WORDS
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "demo"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    total = answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
    assert answer.usage_metadata["total_tokens"] == total


def test_a_stream_joins_to_the_answer_with_its_usage(model: ChatOpenAI) -> None:
    chunks = [*model.stream("Hello!", extra_body=BOUND, stream_usage=True)]
    assert "".join(str(chunk.content) for chunk in chunks) == WORDS
    assert len(chunks) > 3
    (usage,) = [chunk.usage_metadata for chunk in chunks if isinstance(chunk, AIMessageChunk) and chunk.usage_metadata]
    assert usage["output_tokens"] > 0


def test_stop_words_end_an_answer(model: ChatOpenAI) -> None:
    assert model.invoke("Hello!", stop=[" two"], extra_body=BOUND).content == "one"


def test_logprobs_reach_the_metadata(model: ChatOpenAI) -> None:
    answer = model.bind(logprobs=True, top_logprobs=2).invoke("Hello!", extra_body=BOUND)
    tokens = [entry["token"] for entry in answer.response_metadata["logprobs"]["content"]]
    assert "".join(tokens).startswith(WORDS)


def test_a_chain_of_prompt_model_and_parser_answers_a_batch(model: ChatOpenAI) -> None:
    chain = ChatPromptTemplate.from_messages([("human", "Count, {name}!")]) | model.bind(extra_body=BOUND)
    answers = (chain | StrOutputParser()).batch([{"name": "Ada"}, {"name": "Alan"}])
    assert answers == [WORDS, WORDS]


@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_a_bound_tool_is_called_with_arguments_of_its_schema(model: ChatOpenAI, choice: str) -> None:
    bound = model.bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
    answer = bound.invoke("Hello!")
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert Weather.model_validate(call["args"])
    assert answer.invalid_tool_calls == []


def test_a_streamed_tool_call_joins_to_arguments_of_its_schema(model: ChatOpenAI) -> None:
    joined = AIMessageChunk(content="")
    for chunk in model.bind_tools([get_weather], tool_choice="get_weather").stream("Hello!"):
        assert isinstance(chunk, AIMessageChunk)
        joined += chunk
    (call,) = joined.tool_calls
    assert call["name"] == "get_weather"
    assert Weather.model_validate(call["args"])


def test_a_tool_that_ran_is_answered_in_the_next_turn(model: ChatOpenAI) -> None:
    bound = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    asked = HumanMessage("Hello!")
    called = bound.invoke([asked])
    assert isinstance(called, AIMessage)
    result = get_weather.invoke(called.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = model.invoke([asked, called, result], extra_body=BOUND)
    assert answer.content == WORDS


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_a_model(model: ChatOpenAI, method: str) -> None:
    bound = model.with_structured_output(Weather, method=method)  # type: ignore[arg-type]
    assert isinstance(bound.invoke("Hello!"), Weather)


def test_structured_output_comes_through_the_responses_api_too(demo: Served) -> None:
    with httpx2.Client() as http:
        model = chat_openai(demo, use_responses_api=True, http_client=http)
        assert isinstance(model.with_structured_output(Weather).invoke("Hello!"), Weather)


def test_an_unknown_model_is_not_found(model: ChatOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        model.invoke("Hello!", model="dmo")
    assert raised.value.code == "model_not_found"


def test_a_prompt_beyond_the_context_overflows(model: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        model.invoke("one two three " * 1000)


@pytest.mark.anyio
async def test_many_are_answered_at_once(async_model: ChatOpenAI) -> None:
    contents: list[object] = []

    async def ask() -> None:
        contents.append((await async_model.ainvoke("Hello!", extra_body=BOUND)).content)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
    assert contents == [WORDS] * 8


async def leave(engine: Engine, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Cancels the task that asks, once the engine is at work for it."""
    async with engine.freed_after(LONG_TOKENS), anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await engine.generates(20)
        assert engine.figure("running") >= 1
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_cancelled_stream_frees_the_engine(async_model: ChatOpenAI, engine: Engine) -> None:
    async def ask() -> None:
        async for _ in async_model.astream("Hello!", max_completion_tokens=LONG_TOKENS, extra_body=ENDLESS):
            pass

    await leave(engine, ask)


@pytest.mark.anyio
async def test_a_cancelled_request_frees_the_engine(async_model: ChatOpenAI, engine: Engine) -> None:
    async def ask() -> None:
        await async_model.ainvoke("Hello!", max_completion_tokens=LONG_TOKENS, extra_body=ENDLESS)

    await leave(engine, ask)
