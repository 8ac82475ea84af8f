"""OpenAI's Python client in chats: streams, tools, structured output, log-probabilities; against the real engine."""

import openai
import pytest
from openai import OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
)

from tests.clients.conftest import (
    BOUND,
    ENDLESS,
    FORCED_TOKENS,
    FORMAT,
    HELLO,
    THE_TOOL,
    TOOL,
    WORDS,
    Weather,
)


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
