"""The perplexity that training reports is the one that `penstock eval perplexity` finds."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evals.perplexity import Perplexity, perplexity
from penstock.errors import ConfigError
from training.data import conversation
from training.model import Model, build
from training.pretrain_recipe import ModelPart, ValidationPart
from training.tokenizer import train_tokenizer
from training.validation import texts, validate

TOKENIZER = train_tokenizer(["the penstock brings water to a turbine"] * 3, 320, 512)
SHAPE = ModelPart(style="gpt2", hidden_size=32, layers=1, heads=2, ffn_size=64, max_length=32)
MODEL = build(SHAPE, len(TOKENIZER), seed=1)


class Ours:
    """The model as evals' source of log-probabilities, one text at a time and without padding."""

    async def tokens(self, text: str) -> list[int]:
        return list(TOKENIZER(text)["input_ids"])

    async def text(self, tokens: Sequence[int]) -> str:
        return str(TOKENIZER.decode(list(tokens)))

    async def logprobs(self, tokens: Sequence[int]) -> list[float]:
        with torch.no_grad():
            found = torch.log_softmax(MODEL(torch.tensor([list(tokens)]))[0], -1)
        return [float(found[i, token]) for i, token in enumerate(tokens[1:])]


def evaluated(text: str) -> Perplexity:
    return asyncio.run(perplexity(text, Ours(), length=32))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_files_figures_are_those_of_the_eval_command(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "held out.txt"
    path.write_text("Water, the turbine; grüße a penstock.\n" * 20)
    found = validate(MODEL, texts(ValidationPart(every=1, files=[path]), TOKENIZER), 32, rows)
    expected = evaluated(path.read_text())

    assert (found.tokens, found.size) == (expected.tokens, expected.bytes)
    assert found.figures["perplexity"] == pytest.approx(expected.token_perplexity, rel=1e-5)
    assert found.figures["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)


def test_several_texts_are_scored_each_by_itself() -> None:
    found = texts(ValidationPart(every=1, families=["label", "copying"], items=4), TOKENIZER)
    result = validate(MODEL, found, 32, rows=5)
    written = [
        str(TOKENIZER.apply_chat_template(conversation(family, "validation", i)["messages"], tokenize=False))
        for family in ("label", "copying")
        for i in range(4)
    ]
    expected = [evaluated(text) for text in written]

    assert result.tokens == sum(one.tokens for one in expected)
    assert result.size == sum(one.bytes for one in expected)
    assert result.nats == pytest.approx(math.fsum(one.nats for one in expected), rel=1e-5)


def test_an_even_model_needs_the_logarithm_of_its_vocabulary() -> None:
    def even(read: Tensor) -> Tensor:
        return torch.zeros(*read.shape, 50)

    found = texts(ValidationPart(every=1, families=["label"], items=3), TOKENIZER)
    assert validate(even, [one._replace(tokens=[t % 50 for t in one.tokens]) for one in found], 32, 8).figures[
        "perplexity"
    ] == pytest.approx(50, rel=1e-6)


def test_a_text_with_nothing_to_score_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="no text of two tokens"):
        texts(ValidationPart(every=1, files=[tmp_path / "a.txt"]), TOKENIZER)


def test_validation_leaves_no_gradient() -> None:
    model: Model = build(SHAPE, len(TOKENIZER), seed=1)
    validate(model, texts(ValidationPart(every=1, families=["label"], items=2), TOKENIZER), 32, 2)
    assert all(weight.grad is None for weight in model.parameters())
