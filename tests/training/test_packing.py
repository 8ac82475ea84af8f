"""Batches: a function of the step, whole documents, weights where there is something to learn."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from training.corpus import REST_WEIGHT, encoded
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


def test_what_decides_an_answer_may_weigh_more_than_the_rest_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    item = {
        "messages": [
            {"role": "user", "content": "[1] One. [2] Two."},
            {"role": "assistant", "content": "Two. [2]"},
            {"role": "user", "content": "[7]"},
            {"role": "assistant", "content": "[1]"},
        ]
    }
    document = encoded(tokenizer, item, rest=0.1, decision=3.0)
    weighed = [(tokenizer.decode([t]), w) for t, w in zip(document.tokens, document.weights, strict=True) if w > 0.5]

    assert weighed[0] == ("T", 3.0)
    assert [text for text, weight in weighed if weight == 3.0] == ["T", "2", "[", "1"]
    assert {weight for _, weight in weighed} == {1.0, 3.0}
    assert set(document.weights) == {0.1, 1.0, 3.0}
    assert set(encoded(tokenizer, item).weights) == {REST_WEIGHT, 1.0}


def test_a_stage_draws_its_exercises_by_their_shares(tokenizer: PreTrainedTokenizerFast) -> None:
    stage = Stage(steps=1, rows=4, length=512, random_sequences=0.5, marked_passages=0.5, families={"handbook": 1})
    tokens, weights, _ = batch(tokenizer, stage, seed=1, step=0)

    assert not any(row.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) > 9 for row in tokens.tolist())
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="together at most 1"):
        Stage(**{**stage.model_dump(), "marked_passages": 0.6})
