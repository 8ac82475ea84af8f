"""Documents from files: what becomes of them, and what is said of those that cannot be used."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training.corpus import REST_WEIGHT, documents, fitted
from training.packing import batch
from training.pretrain_recipe import Stage
from training.tokenizer import train_tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["one two three four"], 300, 512)


def file_of(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_texts_and_conversations_may_share_a_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text, chat = documents(file_of(tmp_path, {"text": "one two"}, "", CHAT), tokenizer)

    assert tokenizer.decode(list(text.tokens)) == f"one two{tokenizer.eos_token}"
    assert list(text.weights) == [1.0] * len(text.tokens)
    answer = [token for token, weight in zip(*chat, strict=True) if weight == 1.0]
    assert tokenizer.decode(answer) == "Hello!<|im_end|>"
    assert {round(weight, 6) for weight in chat.weights} == {1.0, REST_WEIGHT}


def test_a_plain_text_is_cut_to_rows_and_nothing_of_it_is_lost(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Grüße, one two\n" * 40)
    pieces = fitted(path, documents(path, tokenizer), 32, "refuse")

    assert {len(piece.tokens) for piece in pieces[:-1]} == {32}
    together = [token for piece in pieces for token in piece.tokens]
    assert tokenizer.decode(together) == path.read_text() + str(tokenizer.eos_token)


def test_documents_longer_than_a_row_are_refused_skipped_or_cut(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = file_of(tmp_path, {"text": "one"}, {"text": "one two three four" * 9})
    found = documents(path, tokenizer)
    longest = max(len(one.tokens) for one in found)

    with pytest.raises(
        ConfigError, match=f"1 of 2 documents are longer than a row of 16 tokens.*`length` of {longest}"
    ):
        fitted(path, found, 16, "refuse")
    assert fitted(path, found, 16, "skip") == found[:1]
    assert sum(len(one.tokens) for one in fitted(path, found, 16, "cut")) == sum(len(one.tokens) for one in found)
    assert fitted(path, found, longest, "refuse") == found


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["{"], "data.jsonl:1 is not JSON"),
        ([{"text": "a"}, {"txt": "b"}], r"data.jsonl:2: expected .*found .'txt': 'b'."),
        ([["a"]], r"data.jsonl:1: expected"),
        ([{"messages": []}], "data.jsonl:1: expected"),
        ([{"messages": ["hi"]}], "data.jsonl:1: expected"),
        ([{"messages": [{"role": "assistant", "tool_calls": 3}]}], "data.jsonl:1: the chat template cannot write"),
        ([], "data.jsonl is empty"),
        ([{"text": ""}], "data.jsonl is empty"),
    ],
)
def test_a_row_that_is_wrong_is_named(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rows: list[Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        documents(file_of(tmp_path, *rows), tokenizer)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "data.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data.txt cannot be read"):
        documents(path, tokenizer)


def test_files_are_drawn_by_their_weight_beside_the_families(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    often, seldom = (file_of(tmp_path, {"text": word * 3}, name=f"{word}.jsonl") for word in ("one", "two"))
    stage = Stage(steps=1, rows=40, length=64, families={"label": 1}, files={often: 8, seldom: 1})
    corpus = {path: documents(path, tokenizer) for path in (often, seldom)}
    rows = batch(tokenizer, stage, seed=1, step=0, corpus=corpus)
    text = "".join(str(tokenizer.decode(row)) for row in rows.tokens.tolist())

    assert text.count("oneoneone") > 3 * text.count("twotwotwo") > 0
    for tokens, numbers in zip(rows.tokens.tolist(), rows.documents.tolist(), strict=True):
        ends = [i for i in range(63) if numbers[i] != numbers[i + 1]]
        assert numbers == sorted(numbers)
        assert all(tokens[i] in {tokenizer.eos_token_id, tokenizer.pad_token_id} for i in ends)


def test_a_stage_where_nothing_fits_a_row_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    stage = Stage(steps=1, rows=1, length=8, families={"react": 1})
    with pytest.raises(ConfigError, match="longer than a row of 8: raise `length`"):
        batch(tokenizer, stage, seed=Random(1).randint(1, 9), step=0)
