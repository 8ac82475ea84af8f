"""Batches: a function of the step, whole documents, weights where there is something to learn."""

from random import Random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from training.data import FAMILIES, conversation
from training.packing import REST_WEIGHT, SHARED_START, batch, repeated_sequence, shuffled_sequences
from training.recipe import Stage
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (str(conversation(family, "test", i)) for family in FAMILIES for i in range(20))
    return train_tokenizer(texts, 400, 512)


MIXED = Stage(steps=9, rows=2, length=256, random_sequences=0.3, families={"handbook": 1, "tool_call": 2})


def test_a_batch_is_a_function_of_seed_and_step(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (batch(tokenizer, MIXED, seed=1, step=5) for _ in range(2))

    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.weights, again.weights)
    for seed, step in ((2, 5), (1, 6)):
        assert not torch.equal(first.tokens, batch(tokenizer, MIXED, seed, step).tokens)


def test_every_document_in_a_row_is_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    stage = Stage(steps=1, rows=4, length=200, random_sequences=0, families={"handbook": 1})
    tokens, weights = batch(tokenizer, stage, seed=1, step=0)

    for row, row_weights in zip(tokens.tolist(), weights.tolist(), strict=True):
        used = sum(weight > 0 for weight in row_weights)
        documents = str(tokenizer.decode(row[:used])).split(tokenizer.pad_token)
        assert documents.pop() == ""
        assert len(documents) >= 2
        for document in documents:
            assert document.count("<|im_start|>assistant\n") == 1
            assert document.endswith("<|im_end|>\n")
        assert set(row[used:]) <= {tokenizer.pad_token_id}
        assert {round(weight, 6) for weight in row_weights[:used]} == {1.0, REST_WEIGHT}


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
