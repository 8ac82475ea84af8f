"""The chat template and the tokenizer, through transformers."""

import copy
import json
import re
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training.corpus import REST_WEIGHT, encoded
from training.data import FAMILIES, conversation
from training.families.words import Message
from training.tokenizer import TURN_END, train_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather\nin a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}},
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (
        message["content"] or ""
        for family in FAMILIES
        for i in range(40)
        for message in conversation(family, "test", i)["messages"]
    )
    return train_tokenizer(texts, 400, 512)


def _text(tokenizer: PreTrainedTokenizerFast, messages: list[Message], **options: Any) -> str:
    return cast("str", tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _call(arguments: dict[str, str] | str) -> Message:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "1", "type": "function", "function": function}


@pytest.mark.parametrize("text", ["Grüße, 你好 🌊", "a\n\n  b\t", "order C5374", ""])
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_and_marks_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 400
    assert len(tokenizer.encode("2026")) == 4
    assert len(tokenizer.encode("<tool_call></tool_call><|im_end|>")) == 3
    assert tokenizer.eos_token == TURN_END


def test_tool_marks_stay_in_decoded_text_and_turn_marks_go(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("<tool_call>{}</tool_call><|im_end|>")

    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>{}</tool_call>"


def test_tokenizer_training_is_deterministic() -> None:
    texts = [conversation("react", "x", i)["messages"][0]["content"] for i in range(50)]
    first, second = (train_tokenizer(texts, 350, 512) for _ in range(2))

    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_a_plain_exchange_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]

    assert _text(tokenizer, messages) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n")
    assert _text(tokenizer, messages[:1], add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_are_one_line_each_in_the_system_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    bare = {"type": "function", "function": {"name": "ping"}}

    assert _text(tokenizer, messages, tools=[WEATHER, bare]).startswith(
        "<|im_start|>system\nBe kind.\n\nTools:\n"
        "get_weather(city: string, days: integer|null): Get the weather in a city.\n"
        "ping()<|im_end|>\n<|im_start|>user\n"
    )
    assert _text(tokenizer, messages[1:], tools=[bare]).startswith("<|im_start|>system\nTools:\nping()<|im_end|>\n")


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"properties": {"x": {}, "y": True, "items": {"anyOf": [{"type": "string"}]}}},
        {"properties": {"x": {"type": "array", "items": {"type": "object"}}}, "$defs": {}},
        {"properties": {"keys": {"enum": ["a", "b"]}}, "additionalProperties": False},
    ],
)
def test_any_json_schema_can_be_offered(tokenizer: PreTrainedTokenizerFast, parameters: dict[str, Any] | None) -> None:
    tool = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    shown = _text(tokenizer, [{"role": "user", "content": "Hi"}], tools=[tool])

    assert "\nodd(" in shown
    assert all(name in shown for name in ((parameters or {}).get("properties") or {}))


@pytest.mark.parametrize("arguments", [{"city": "Lund"}, '{"city": "Lund"}'])
def test_calls_and_results_are_rendered_the_hermes_way(
    tokenizer: PreTrainedTokenizerFast, arguments: dict[str, str] | str
) -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Weather in Lund?"},
        {"role": "assistant", "content": None, "tool_calls": [_call(arguments)]},
        {"role": "tool", "tool_call_id": "1", "content": "cold"},
    ]

    assert _text(tokenizer, messages).endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Lund"}}\n</tool_call><|im_end|>\n<|im_start|>tool\ncold<|im_end|>\n'
    )


def test_parallel_calls_and_words_before_them_stand_on_their_own_lines(tokenizer: PreTrainedTokenizerFast) -> None:
    said = {"role": "assistant", "content": "Well.", "tool_calls": [_call("{}"), _call("{}")]}
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'

    assert f"assistant\nWell.\n{call}\n{call}<|im_end|>" in _text(tokenizer, [said])


def test_content_may_be_a_list_of_text_parts(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "are you?"}]

    assert _text(tokenizer, [{"role": "user", "content": parts}]) == _text(
        tokenizer, [{"role": "user", "content": "How are you?"}]
    )


def test_a_final_message_can_be_continued(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]

    assert _text(tokenizer, messages, continue_final_message=True).endswith("assistant\nHel")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_covers_exactly_the_assistant_turns_with_their_eos(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    for i in range(20):
        item = conversation(family, "test", i)
        document = encoded(tokenizer, item)
        weighed = [t for t, w in zip(document.tokens, document.weights, strict=True) if w == 1.0]
        answers = [m for m in item["messages"] if m["role"] == "assistant"]

        assert tokenizer.decode(weighed) == "".join(_answer(m) + TURN_END for m in answers)
        assert set(document.weights) == {1.0, REST_WEIGHT}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_weigh_the_same_where_a_template_has_no_marks(tokenizer: PreTrainedTokenizerFast, family: str) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template, marks = re.subn(r"\{%-?\s*(end)?generation\s*-?%\}", "", str(tokenizer.chat_template))
    assert marks == 2
    for i in range(5):
        item = conversation(family, "test", i)
        assert encoded(plain, item) == encoded(tokenizer, item)


def test_a_template_of_which_answers_cannot_be_told_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="cannot be told: the chat template does not end an assistant's turn with"):
        encoded(odd, conversation("greeting", "test", 0))
    odd.chat_template = None
    with pytest.raises(ConfigError, match=r"cannot be told: .*chat_template"):
        encoded(odd, conversation("greeting", "test", 0))


def _answer(message: Message) -> str:
    if not message.get("tool_calls"):
        return str(message["content"])
    [call] = message["tool_calls"]
    function = call["function"]
    body = json.dumps({"name": function["name"], "arguments": json.loads(function["arguments"])})
    return f"<tool_call>\n{body}\n</tool_call>"
