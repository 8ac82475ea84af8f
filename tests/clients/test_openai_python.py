"""OpenAI's Python client against the real engine, its answers checked against the client's own types."""

from collections.abc import AsyncIterator, Iterator

import anyio
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
)
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall, ResponseOutputItem
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.clients.conftest import FORCED_TOKENS, KEY, SCHEMA, Engine, Weather
from tests.conftest import Served

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
TOO_LONG = "one two three " * 1000
LONG_TOKENS = 1900

# Whatever the weights, the answer is these words.
WORDS = "one two three"
BOUND = {"structured_outputs": {"regex": WORDS}}
ENDLESS = {"ignore_eos": True}

TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA},
}
THE_TOOL: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_weather"}}
FORMAT: ResponseFormatJSONSchema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
RESPONSES_TOOL: FunctionToolParam = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}


@pytest.fixture(scope="module")
def client(demo: Served) -> Iterator[OpenAI]:
    url = f"{demo.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
async def async_client(demo: Served) -> AsyncIterator[AsyncOpenAI]:
    url = f"{demo.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(demo: Served) -> Iterator[OpenAI]:
    """For plain completions, whose nulls OpenAI itself sends and the client's types do not allow."""
    with OpenAI(base_url=f"{demo.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_chat_is_answered_with_a_message_and_its_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=8, extra_body=ENDLESS)
    assert answer.model == "demo"
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_the_system_message_and_earlier_turns_are_part_of_the_prompt(client: OpenAI) -> None:
    def prompt_tokens(messages: list[ChatCompletionMessageParam]) -> int:
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    system: ChatCompletionMessageParam = {"role": "system", "content": "Be brief."}
    earlier: ChatCompletionMessageParam = {"role": "assistant", "content": [{"type": "text", "text": "Good day."}]}
    assert prompt_tokens(HELLO) < prompt_tokens([system, *HELLO]) < prompt_tokens([system, *HELLO, earlier, *HELLO])


def test_max_completion_tokens_bounds_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_completion_tokens=3, extra_body=ENDLESS)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_every_answer_bears_its_request_id(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "of-the-caller"}
    )
    assert answer._request_id == "of-the-caller"
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=HELLO, max_tokens=1)
    assert raw.request_id is not None
    assert raw.request_id.startswith("req_")


def test_a_stream_joins_to_the_unstreamed_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=40, temperature=0, extra_body=ENDLESS
    )
    chunks = [
        *client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=40, temperature=0, stream=True, extra_body=ENDLESS
        )
    ]
    choices = [chunk.choices[0] for chunk in chunks]
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(choices) > 5
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert choices[-1].finish_reason == "length"
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content


def test_a_streams_usage_comes_last_where_it_is_asked_for(client: OpenAI) -> None:
    chunks = [
        *client.chat.completions.create(
            model="demo",
            messages=HELLO,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=ENDLESS,
        )
    ]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_a_stream_has_no_usage_where_it_is_not_asked_for(client: OpenAI) -> None:
    chunks = [*client.chat.completions.create(model="demo", messages=HELLO, max_tokens=6, stream=True)]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_n_answers_are_given(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=6, n=3, extra_body=ENDLESS)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18


def test_n_streamed_answers_each_end(client: OpenAI) -> None:
    chunks = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=6, n=2, stream=True)
    ended = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ended) == [0, 1]


def test_an_answer_ends_before_the_stop_words(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=50, stop=["never", " three"], extra_body=BOUND
    )
    assert answer.choices[0].message.content == "one two"
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_ends_before_the_stop_words(client: OpenAI) -> None:
    chunks = [
        *client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=50, stop=" two", stream=True, extra_body=BOUND
        )
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer_twice(client: OpenAI) -> None:
    def content() -> str | None:
        answer = client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=24, temperature=2, seed=7, extra_body=ENDLESS
        )
        return answer.choices[0].message.content

    assert content() == content()


def test_logprobs_spell_the_answer_with_alternatives(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=50,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        stop=" three",
        extra_body=BOUND | {"include_stop_str_in_output": True},
    )
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens
    assert "".join(token.token for token in tokens) == WORDS
    assert bytes(byte for token in tokens for byte in token.bytes or []) == WORDS.encode()
    for token in tokens:
        alternatives = [alternative.logprob for alternative in token.top_logprobs]
        assert len(alternatives) == 3
        assert 0 >= alternatives[0] == token.logprob
        assert alternatives == sorted(alternatives, reverse=True)


def test_streamed_logprobs_spell_the_answer(client: OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=50,
        logprobs=True,
        stream=True,
        stop=" three",
        extra_body=BOUND | {"include_stop_str_in_output": True},
    )
    logprobs = [chunk.choices[0].logprobs for chunk in chunks]
    assert "".join(token.token for one in logprobs if one for token in one.content or []) == WORDS


def weather_of(answer: ChatCompletion) -> Weather:
    """The arguments of the only tool call."""
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "get_weather"
    assert call.id
    return Weather.model_validate_json(call.function.arguments)


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=FORCED_TOKENS,
        temperature=1,
        seed=1,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert weather_of(answer)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=FORCED_TOKENS,
        temperature=1,
        seed=1,
        tools=[TOOL],
        tool_choice=THE_TOOL,
    )
    assert weather_of(answer)
    assert answer.choices[0].finish_reason == "stop"


def test_a_tool_that_is_not_allowed_is_not_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=20, tools=[TOOL], tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content is not None


@pytest.mark.parametrize("choice", ["required", THE_TOOL], ids=["required", "named"])
def test_a_streamed_tool_call_joins_to_arguments_of_its_schema(
    client: OpenAI, choice: ChatCompletionNamedToolChoiceParam
) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=FORCED_TOKENS,
        temperature=1,
        seed=1,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        stream=True,
    )
    pieces = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    functions = [piece.function for piece in pieces if piece.function]
    assert {piece.index for piece in pieces} == {0}
    assert len({piece.id for piece in pieces if piece.id}) == 1
    assert [function.name for function in functions if function.name] == ["get_weather"]
    assert len(pieces) > 1
    assert Weather.model_validate_json("".join(function.arguments or "" for function in functions))


def test_a_tools_result_is_answered_in_the_next_turn(client: OpenAI) -> None:
    called: list[ChatCompletionMessageParam] = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"days": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "It is sunny and warm."},
    ]
    before = client.chat.completions.create(model="demo", messages=called[:2], max_tokens=4, tools=[TOOL])
    after = client.chat.completions.create(model="demo", messages=called, max_tokens=4, tools=[TOOL])
    assert after.choices[0].message.role == "assistant"
    assert before.usage is not None
    assert after.usage is not None
    assert after.usage.prompt_tokens > before.usage.prompt_tokens


def test_the_parse_helper_returns_tool_arguments_as_a_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo",
        messages=HELLO,
        max_tokens=FORCED_TOKENS,
        temperature=1,
        seed=1,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert answer.choices[0].message.tool_calls is not None
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_a_response_format_binds_the_answer_to_its_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=300, temperature=1, seed=1, response_format=FORMAT
    )
    assert Weather.model_validate_json(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_the_parse_helper_returns_a_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=HELLO, max_tokens=300, temperature=1, seed=1, response_format=Weather
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_the_stream_helper_returns_a_model(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=HELLO, max_tokens=300, temperature=1, seed=1, response_format=Weather
    ) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(answer.choices[0].message.parsed, Weather)


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
    assert len(chunks) > 5
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
