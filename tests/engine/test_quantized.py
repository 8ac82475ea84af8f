"""What `config.json` says of quantized weights, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.quantized import Quantization, of_folder, quantization
from penstock.errors import StartError
from tests.conftest import REPOSITORY
from training.int8 import quantization_config

DATA = REPOSITORY / "tests/data/quantized"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def told(**config: Any) -> Quantization | None:
    return quantization({"quantization_config": config})


def test_what_gptqmodel_wrote_is_known() -> None:
    assert of_folder(DATA / "gptq") == Quantization("gptq", 4, 32, zero_from=1)
    assert of_folder(DATA / "awq") == Quantization("awq", 4, 32)


def test_autoawqs_own_names_are_known() -> None:
    assert told(quant_method="awq", w_bit=4, q_group_size=64) == Quantization("awq", 4, 64)


def test_the_second_format_of_gptq_stores_zeros_as_they_are() -> None:
    found = told(**GPTQ, checkpoint_format="gptq_v2")
    assert found
    assert found.zero_from == 0


def test_what_int8_writes_is_known() -> None:
    assert told(**quantization_config()) == Quantization("int8", 8, -1)


@pytest.mark.parametrize(
    "config", [{}, {"quantization_config": None}, {"quantization_config": {"quant_method": "fp8"}}]
)
def test_dense_weights_and_strange_ones_are_vllms_business(config: dict[str, Any]) -> None:
    assert quantization(config) is None


@pytest.mark.parametrize(("change", "says"), [({"desc_act": True}, "desc_act: false"), ({"sym": False}, "sym: true")])
def test_gptq_that_vllm_does_not_serve_is_refused_with_what_to_do(change: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError, match=says):
        told(**GPTQ | change)


def test_activation_order_with_one_group_is_no_order() -> None:
    assert told(**GPTQ | {"desc_act": True, "group_size": -1})


@pytest.mark.parametrize("content", [None, "{", json.dumps({"quantization_config": {"quant_method": "gptq"}})])
def test_a_folder_without_a_readable_configuration_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(StartError, match=r"config\.json"):
        of_folder(tmp_path)
