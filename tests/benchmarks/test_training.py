"""The benchmark of training: what is compared is of one size, and what is counted is what is multiplied."""

import argparse
from pathlib import Path

import pytest

from benchmarks.plain_gpt import PlainGPT
from benchmarks.training import SIZES, Cost, matrices, measured, recipe_for, report
from training.model import build

TINY = argparse.Namespace(
    **{**SIZES, "width": 64, "layers": 2, "inner": 96, "rows": 2, "length": 128},
    style="gpt2",
    precision="float32",
    device="cpu",
)


def test_the_plain_gpt_is_of_the_size_of_ours(tmp_path: Path) -> None:
    shape = recipe_for(TINY, tmp_path).model
    ours = build(shape, 500, 1)
    plain = PlainGPT(500, shape.hidden_size, shape.layers, shape.heads, shape.ffn_size, shape.max_length)

    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("style", ["gpt2", "qwen3", "llama"])
def test_every_multiplication_is_counted_once(tmp_path: Path, style: str) -> None:
    shape = recipe_for(argparse.Namespace(**{**vars(TINY), "style": style}), tmp_path).model
    inner = 4 * 64 * 64 + (2 if style == "gpt2" else 3) * 64 * 96

    assert sum(a * b for a, b in matrices(build(shape, 500, 1))) == 2 * inner + 500 * 64


def test_ratios_are_medians_against_the_faster_of_the_yardsticks() -> None:
    costs = {
        "penstock": [Cost(2.0, 4.0), Cost(2.0, 4.0), Cost(4.0, 8.0)],
        "bare": [Cost(1.0, 2.0), Cost(1.5, 2.0), Cost(1.0, 2.0)],
        "plain": [Cost(3.0, 3.0)] * 3,
        "multiplications": [Cost(0.5, 0.5)] * 3,
    }
    lines = report({"costs": costs, "tokens": 100, "flops": 5e8, "attention": 5e8, "by": "cpu_s"})

    assert lines["penstock"]["tokens_per_cpu_s"] == 50
    assert lines["penstock"]["of_bare"] == 0.5
    assert lines["bare"]["share"] == pytest.approx(1.0)
    assert lines["multiplications"]["share"] == pytest.approx(1.0)


@pytest.mark.parametrize(("cores", "more", "by"), [(1, set(), "cpu_s"), (2, {"in turn"}, "wall_s")])
def test_every_contestant_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, more: set[str], by: str
) -> None:
    """Where another process makes rows, this one's seconds are not all that it costs."""
    monkeypatch.setattr("training.ahead.cores", lambda: cores)
    found = measured(recipe_for(TINY, tmp_path), rounds=1, steps=1)

    assert set(found["costs"]) == {"penstock", "bare", "plain", "transformers", "multiplications"} | more
    assert found["by"] == by
    assert found["tokens"] == 256
