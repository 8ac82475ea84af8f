"""Tokenizers of every algorithm: what survives the round trip, and a run that makes one."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training.data import conversation
from training.tokenizer import LEARN, Algorithm, loaded, plain_texts, train, train_tokenizer

TEXTS = [
    text
    for family in ("handbook", "tool_call", "react", "story", "extraction")
    for i in range(60)
    for text in plain_texts(conversation(family, "test", i))
]
TOKENIZERS = {algorithm: train_tokenizer(TEXTS, 900, 512, algorithm) for algorithm in LEARN}
SPACES = "a\n\n  b\t c"


@pytest.fixture(params=TOKENIZERS)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return cast("Algorithm", request.param)


def there_and_back(algorithm: Algorithm, text: str) -> str:
    tokenizer = TOKENIZERS[algorithm]
    return str(tokenizer.decode(tokenizer.encode(text)))


@pytest.mark.parametrize("lossless", ["bpe", "unigram"])
@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_any_text_survives_bytes(lossless: Algorithm, text: str) -> None:
    assert there_and_back(lossless, text) == text


def test_learned_texts_survive_to_the_word(algorithm: Algorithm) -> None:
    for text in TEXTS[::7]:
        assert there_and_back(algorithm, text).split() == text.split() or algorithm == "wordpiece"
        assert "".join(there_and_back(algorithm, text).split()) == "".join(text.split())


def test_wordpiece_loses_white_space_and_unseen_characters_alone() -> None:
    assert there_and_back("wordpiece", SPACES) == "a b c"
    assert there_and_back("wordpiece", "a 🌊") == "a [UNK]"


def test_learned_words_are_fewer_tokens_than_characters(algorithm: Algorithm) -> None:
    tokenizer = TOKENIZERS[algorithm]
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)

    assert 600 < len(tokenizer) <= 900
    assert tokens < 0.55 * sum(map(len, TEXTS))


def test_marks_and_digits_are_single_tokens_in_every_algorithm(algorithm: Algorithm) -> None:
    tokenizer = TOKENIZERS[algorithm]

    assert len(tokenizer.encode("<tool_call></tool_call><|im_end|>")) == 3
    assert tokenizer.eos_token_id == tokenizer.encode("<|im_end|>")[0]
    assert [str(tokenizer.decode([token])).strip() for token in tokenizer.encode("2026")][-4:] == [*"2026"]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"


def test_a_conversation_is_written_and_its_answers_are_found(algorithm: Algorithm) -> None:
    tokenizer = TOKENIZERS[algorithm]
    item = conversation("tool_call", "test", 1)
    rendered: Any = tokenizer.apply_chat_template(
        item["messages"], tools=item["tools"], return_dict=True, return_assistant_tokens_mask=True
    )
    answer = [t for t, is_answer in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if is_answer]

    said = "".join(str(tokenizer.decode(answer)).split())
    [call] = item["messages"][-1]["tool_calls"]
    assert said.startswith('<tool_call>{"name":"' + call["function"]["name"])
    assert said.endswith("</tool_call><|im_end|>")


def recipe_in(folder: Path, **change: Any) -> Path:
    texts = folder / "texts.txt"
    texts.write_text("\n".join(TEXTS[:200]))
    said = {"script": "tokenizer", "algorithm": "unigram", "vocab_size": 700, "files": [str(texts)], **change}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


def test_a_run_leaves_a_tokenizer_that_a_pre_training_takes(tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    recipe = recipe_in(tmp_path, max_length=128, families=["label"], items=50, chat_template=str(template))
    train(recipe, tmp_path / "run", resume=False)
    tokenizer = loaded(tmp_path / "run/model")
    [figures] = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]

    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.model_max_length == 128
    assert tokenizer.decode(tokenizer.encode(SPACES)) == SPACES
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert figures["vocab_size"] == len(tokenizer)
    assert figures["bytes_per_token"] > 1.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"algorithm": "bep"}, "'bpe', 'wordpiece' or 'unigram'"),
        ({"vocab_size": 400}, "give it a vocab_size of at least 500"),
        ({"files": []}, "a tokenizer needs `families` or `files`"),
        ({"files": ["nowhere.txt"]}, "nowhere.txt cannot be read"),
        ({"chat_template": "nowhere.jinja"}, "nowhere.jinja cannot be read"),
    ],
)
def test_a_wrong_recipe_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        train(recipe_in(tmp_path, **change), tmp_path / "run", resume=False)
    assert told in refused.value.message


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tokenizer"):
        loaded(tmp_path)
