"""OpenAI's Python client on the other routes, refused and leaving; against the real engine."""

import anyio
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletion,
)
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputItem

from tests.clients.conftest import (
    BOUND,
    ENDLESS,
    FORCED_TOKENS,
    HELLO,
    KEY,
    LONG_TOKENS,
    RESPONSES_TOOL,
    TOO_LONG,
    WORDS,
    Engine,
    Weather,
)
from tests.conftest import Served


def test_plain_completions_go_on_from_their_prompts(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt=["Hello", "Good day"], max_tokens=5, n=2, extra_body=ENDLESS
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


def test_a_prompt_may_be_token_ids(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=[70, 71, 72], max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


def test_a_streamed_completion_joins_to_the_unstreamed_one(lenient: OpenAI) -> None:
    whole = lenient.completions.create(model="demo", prompt="Hello", max_tokens=30, temperature=0, extra_body=ENDLESS)
    chunks = [
        *lenient.completions.create(
            model="demo", prompt="Hello", max_tokens=30, temperature=0, stream=True, extra_body=ENDLESS
        )
    ]
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_an_echoed_prompt_has_logprobs(lenient: OpenAI) -> None:
    answer = lenient.completions.create(
        model="demo", prompt=WORDS, max_tokens=2, temperature=0, logprobs=2, echo=True, extra_body=ENDLESS
    )
    choice = answer.choices[0]
    assert choice.text.startswith(WORDS)
    assert choice.logprobs is not None
    tokens, logprobs = choice.logprobs.tokens, choice.logprobs.token_logprobs
    assert tokens
    assert logprobs
    assert "".join(tokens).startswith(WORDS)
    assert logprobs[0] is None
    assert all(logprob <= 0 for logprob in logprobs[1:])
    assert choice.logprobs.text_offset
    assert choice.logprobs.top_logprobs
    assert len(tokens) == len(logprobs) == len(choice.logprobs.text_offset) == len(choice.logprobs.top_logprobs)
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs[1:])


def test_a_prompt_is_scored_without_generating(lenient: OpenAI) -> None:
    answer = lenient.completions.create(model="demo", prompt=WORDS, max_tokens=0, logprobs=1, echo=True)
    assert answer.choices[0].text == WORDS
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or []) == WORDS


def test_a_response_is_created(client: OpenAI) -> None:
    response = client.responses.parse(
        model="demo", input="Hello!", instructions="Be brief.", max_output_tokens=300, text_format=Weather
    )
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Weather)
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_response_cut_short_says_why(client: OpenAI) -> None:
    response = client.responses.create(model="demo", input="Hello!", max_output_tokens=5, extra_body=ENDLESS)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_streamed_response_cut_short_ends_as_incomplete(client: OpenAI) -> None:
    stream = client.responses.create(model="demo", input="Hello!", max_output_tokens=5, stream=True, extra_body=ENDLESS)
    assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_streamed_response_joins_to_its_final_text(client: OpenAI) -> None:
    with client.responses.stream(model="demo", input="Hello!", max_output_tokens=300, text_format=Weather) as stream:
        events = [*stream]
        final = stream.get_final_response()
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    joined = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert joined == final.output_text
    assert isinstance(final.output_parsed, Weather)


def weather_in(output: list[ResponseOutputItem]) -> Weather:
    """The arguments of the only function call."""
    (call,) = [item for item in output if isinstance(item, ResponseFunctionToolCall)]
    assert call.name == "get_weather"
    return Weather.model_validate_json(call.arguments)


def test_a_response_calls_a_function_and_takes_its_result(client: OpenAI) -> None:
    response = client.responses.create(
        model="demo",
        input="Hello!",
        max_output_tokens=FORCED_TOKENS,
        tools=[RESPONSES_TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert weather_in(response.output)
    followed = client.responses.create(
        model="demo",
        max_output_tokens=5,
        tools=[RESPONSES_TOOL],
        input=[
            {"role": "user", "content": "Hello!"},
            {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"days": 1}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "It is sunny and warm."},
        ],
    )
    assert response.usage is not None
    assert followed.usage is not None
    assert followed.usage.input_tokens > response.usage.input_tokens


def test_a_streamed_response_calls_a_function(client: OpenAI) -> None:
    stream = client.responses.create(
        model="demo",
        input="Hello!",
        max_output_tokens=FORCED_TOKENS,
        tools=[RESPONSES_TOOL],
        tool_choice={"type": "function", "name": "get_weather"},
        stream=True,
    )
    events = [*stream]
    joined = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert Weather.model_validate_json(joined)
    assert events[-1].type == "response.completed"
    assert weather_in(events[-1].response.output) == Weather.model_validate_json(joined)


def test_the_served_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_a_served_model_is_described(client: OpenAI) -> None:
    model = client.models.retrieve("demo")
    assert (model.id, model.object) == ("demo", "model")
    assert model.created > 0


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="dmo", messages=HELLO)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert "did you mean 'demo'?" in raised.value.message
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("dmo")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(model="dmo", input="Hello!")
    assert raised.value.code == "model_not_found"


def test_a_bad_value_is_refused_and_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="demo", messages=HELLO, temperature=9)
    assert (raised.value.type, raised.value.param) == ("invalid_request_error", "temperature")
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model="demo",
            messages=[*HELLO, {"role": "wizard", "content": "Hm."}],  # type: ignore[list-item, misc]
        )
    assert raised.value.param == "messages[1].role"
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="demo", input="Hello!", top_p=3)
    assert raised.value.param == "top_p"


def test_the_engines_refusals_have_the_same_shape(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="demo", messages=HELLO, logit_bias={"999999": 1})
    assert (raised.value.type, raised.value.param) == ("invalid_request_error", "logit_bias")


def test_a_prompt_beyond_the_context_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": TOO_LONG}])
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")


def test_the_prompt_beyond_the_context_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="demo", prompt=TOO_LONG)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="demo", input=TOO_LONG)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "input")


def test_a_stream_that_cannot_start_is_refused_with_a_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": TOO_LONG}], stream=True)
    assert raised.value.code == "context_length_exceeded"


def test_what_is_not_served_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="demo", input="Hello!")
    assert refused.value.param == "model"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.audio.speech.create(model="demo", input="Hello!", voice="alloy")
    assert unknown.value.code == "unknown_url"


def test_only_a_known_key_is_let_in(keyed: Served) -> None:
    url = f"{keyed.url}/v1"
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as known:
        assert known.chat.completions.create(model="demo", messages=HELLO, max_tokens=1).choices
    with OpenAI(base_url=url, api_key="sk-of-somebody-else", max_retries=0) as unknown:
        with pytest.raises(openai.AuthenticationError) as raised:
            unknown.chat.completions.create(model="demo", messages=HELLO, max_tokens=1)
        assert raised.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            unknown.models.list()


@pytest.mark.anyio
async def test_the_async_client_is_answered_many_times_at_once(async_client: AsyncOpenAI) -> None:
    answers: list[ChatCompletion] = []

    async def ask() -> None:
        answer = await async_client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=20, extra_body=ENDLESS
        )
        answers.append(answer)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [20] * 8
    assert len({answer.id for answer in answers}) == 8


@pytest.mark.anyio
async def test_the_async_client_streams(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=50, stream=True, extra_body=BOUND
    )
    contents = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(contents) == WORDS


@pytest.mark.anyio
async def test_leaving_a_stream_frees_the_engine(async_client: AsyncOpenAI, engine: Engine) -> None:
    async with engine.freed_after(LONG_TOKENS):
        stream = await async_client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=LONG_TOKENS, stream=True, extra_body=ENDLESS
        )
        for _ in range(10):
            await anext(stream)
        assert engine.figure("running") >= 1
        await stream.close()


@pytest.mark.anyio
async def test_leaving_an_unstreamed_request_frees_the_engine(async_client: AsyncOpenAI, engine: Engine) -> None:
    async def ask() -> None:
        await async_client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=LONG_TOKENS, extra_body=ENDLESS
        )

    async with engine.freed_after(LONG_TOKENS), anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await engine.generates(20)
        assert engine.figure("running") >= 1
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_client_that_loses_patience_frees_the_engine(async_client: AsyncOpenAI, engine: Engine) -> None:
    impatient = async_client.with_options(timeout=0.5)
    async with engine.freed_after(LONG_TOKENS):
        with pytest.raises(openai.APITimeoutError):
            await impatient.completions.create(model="demo", prompt="Hello", max_tokens=LONG_TOKENS, extra_body=ENDLESS)
