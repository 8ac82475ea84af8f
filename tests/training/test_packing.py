"""Batches: a function of the step, whole documents, weights where there is something to learn."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from training.corpus import REST_WEIGHT
from training.data import FAMILIES, conversation
from training.packing import batch
from training.pretrain_recipe import Stage
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
    tokens, weights, _ = batch(tokenizer, stage, seed=1, step=0)

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
