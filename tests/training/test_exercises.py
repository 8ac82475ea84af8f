"""Exercises: what weighs in them can be known from what stands before it."""

import re
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from training.data import FAMILIES, conversation
from training.exercises import SHARED_START, marked_passages, repeated_sequence, shuffled_sequences
from training.tokenizer import train_tokenizer


def test_only_the_repetitions_of_a_random_sequence_weigh() -> None:
    for seed in range(50):
        tokens, weights = repeated_sequence(Random(seed), 400, 256)
        length = weights.index(1.0)

        assert weights == [0.0] * length + [1.0] * (len(tokens) - length)
        assert tokens[length:] == (tokens[:length] * 2)[: len(tokens) - length]
        assert len(tokens) % length == 0


def test_what_weighs_in_shuffled_segments_was_said_before_after_the_same_start() -> None:
    moved = 0
    for seed in range(100):
        tokens, weights = shuffled_sequences(Random(seed), 400, 256)
        half = len(tokens) // 2
        said = [tuple(tokens[i : i + SHARED_START + 1]) for i in range(half - SHARED_START)]
        moved += tokens[half:] != tokens[:half]

        assert len(tokens) <= 256
        assert len(weights) == len(tokens)
        assert not any(weights[:half])
        assert sorted(tokens[:half]) == sorted(tokens[half:])
        for at in range(half, len(tokens)):
            if weights[at]:
                assert tuple(tokens[at - SHARED_START : at + 1]) in said
    assert moved > 80


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer((str(conversation(family, "t", i)) for family in FAMILIES for i in range(20)), 400, 512)


def test_a_snippet_is_marked_with_the_number_of_its_passage(tokenizer: PreTrainedTokenizerFast) -> None:
    found = 0
    for seed in range(60):
        tokens, _ = marked_passages(Random(seed), tokenizer)
        text = str(tokenizer.decode(list(tokens))).removesuffix(tokenizer.pad_token)
        passages = dict(re.findall(r"^\[(\d)\] (.*)$", text, re.MULTILINE))
        for snippet, number in re.findall(r"^(.+) \[(\d)\](?=\n|<|$)", text, re.MULTILINE):
            if not re.match(r"\[\d\]", snippet):
                found += snippet.strip() in passages[number]
    assert found > 150


def test_what_weighs_in_marked_passages_is_numbers_and_inside_a_passage_its_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    inside = cited = 0
    for seed in range(60):
        tokens, weights = marked_passages(Random(seed), tokenizer)
        texts = [str(tokenizer.decode([token])) for token in tokens]
        last = ""
        for at, (text, weight) in enumerate(zip(texts, weights, strict=True)):
            if weight and texts[at - 1] == " [":
                cited += 1
            elif weight:
                inside += 1
                assert text == last
            elif texts[at - 1] == "[" and text.isdigit():
                last = text
            if weight:
                assert text.isdigit()
                assert weight == 1.0
    assert inside > 30
    assert cited > 200
