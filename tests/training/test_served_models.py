"""Every style, and every kind of tokenizer, as vLLM serves them: the tokens of the training stack, and its text."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engine.launch import QUIET
from training.model import Model, build, export
from training.pretrain_recipe import ModelPart
from training.tokenizer import Algorithm, train_tokenizer

REPOSITORY = Path(__file__).parents[2]
SIZE = {"hidden_size": 128, "layers": 2, "heads": 4, "ffn_size": 256, "max_length": 64}
STYLES: dict[str, tuple[dict[str, Any], Algorithm]] = {
    "qwen3": ({}, "bpe"),
    "llama": ({"key_value_heads": 2, "tied": False}, "unigram"),
    "gpt2": ({}, "wordpiece"),
}
LEARNED = ["A small text, and a smaller one: 12 words.\n\nGrüße, small text!"] * 9
PROMPTS = [[5], [9, 8, 7, 6, 5, 4], list(range(4, 44))]


class Made(NamedTuple):
    model: Model
    tokenizer: PreTrainedTokenizerFast
    served: list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """All of them by one start of vLLM."""
    folder = tmp_path_factory.mktemp("models")
    models, tokenizers = {}, {}
    for style, (change, algorithm) in STYLES.items():
        shape = ModelPart.model_validate({**SIZE, "style": style, **change})
        tokenizers[style] = train_tokenizer(LEARNED, 600, 64, algorithm)
        models[style] = shaken(build(shape, len(tokenizers[style]), seed=1))
        (folder / style).mkdir()
        export(models[style], shape, tokenizers[style], folder / style, dtype=torch.float32)
    asked = [
        {
            "folder": str(folder / style),
            "prompts": PROMPTS,
            "text": LEARNED[0],
            "allowed": whole_characters(tokenizers[style]),
        }
        for style in STYLES
    ]
    env = {**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, "-m", "tests.training.generated_by_vllm", json.dumps(asked)]
    ended = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    served = json.loads(ended.stdout.splitlines()[-1])
    return {style: Made(models[style], tokenizers[style], found) for style, found in zip(STYLES, served, strict=True)}


def shaken(model: Model) -> Model:
    """Weights far enough from their start that the likeliest token is no matter of the last bit."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("style", STYLES)
def test_vllm_generates_what_the_trained_model_does(made: dict[str, Made], style: str) -> None:
    model, _, served = made[style]
    for found in served[:-1]:
        tokens, logprobs = greedy(model, found["read"], len(found["tokens"]))

        assert found["tokens"] == tokens
        assert found["logprobs"] == pytest.approx(logprobs, abs=1e-3)
    assert [found["read"] for found in served[:-1]] == PROMPTS
    assert len({tuple(found["tokens"]) for found in served}) > 1


@pytest.mark.parametrize("style", STYLES)
def test_vllm_reads_and_writes_text_as_the_tokenizer_does(made: dict[str, Made], style: str) -> None:
    _, tokenizer, served = made[style]

    assert served[-1]["read"] == tokenizer.encode(LEARNED[0])
    whole = str(tokenizer.decode(served[-1]["read"] + served[-1]["tokens"]))
    assert len(served[-1]["text"]) >= len(served[-1]["tokens"])
    assert whole == str(tokenizer.decode(served[-1]["read"])) + served[-1]["text"]


def whole_characters(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that are text by themselves: a model that has learned nothing would write any bytes."""
    return [token for token in range(4, len(tokenizer)) if str(tokenizer.decode([token])).strip(" #").isalpha()]


@torch.no_grad()
def greedy(model: Model, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        scores = torch.log_softmax(model(torch.tensor([tokens]))[0, -1], -1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return tokens[len(prompt) :], logprobs
