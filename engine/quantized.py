"""How a model's weights are quantized, read from its `config.json` without torch; what no engine serves is told here.

Three forms: GPTQ (https://arxiv.org/abs/2210.17323) and AWQ (https://arxiv.org/abs/2306.00978), of 4-bit weights with
a scale for each group of inputs, and int8, compressed-tensors' weights of 8 bits with a scale for each output.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.errors import StartError

Method = Literal["gptq", "awq", "int8"]

# compressed-tensors' name for integers that are not packed into larger ones.
INT8_FORMAT = "int-quantized"


@dataclass(frozen=True)
class Quantization:
    """`group_size`: the inputs that share a scale, -1 for all of them. `zero_from`: what GPTQ's stored zeros lack,
    1 in its first format (https://github.com/AutoGPTQ/AutoGPTQ), 0 in the second and in AWQ."""

    method: Method
    bits: int
    group_size: int
    zero_from: int = 0


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Of a parsed `config.json`; None where the weights are dense, or quantized in a way that only vLLM knows.

    Raises StartError for GPTQ that vLLM does not serve, with what to do.
    """
    told = config.get("quantization_config") or {}
    match told.get("quant_method"):
        case "gptq":
            refuse_unservable(told)
            v1 = told.get("checkpoint_format", "gptq") == "gptq"
            return Quantization("gptq", told["bits"], told["group_size"], zero_from=int(v1))
        case "awq":
            if "w_bit" in told:  # AutoAWQ's own names
                return Quantization("awq", told["w_bit"], told["q_group_size"])
            return Quantization("awq", told["bits"], told["group_size"])
        case "compressed-tensors" if told.get("format") == INT8_FORMAT:
            return Quantization("int8", 8, -1)
    return None


def refuse_unservable(told: Mapping[str, Any]) -> None:
    remedy = "quantize it again with Penstock (`python -m training.quantize`), or by another tool"
    if told.get("desc_act") and told.get("group_size") != -1:
        raise StartError(
            f"the GPTQ weights are ordered by activation (desc_act), which vLLM no longer serves: {remedy}"
            " with desc_act: false"
        )
    if not told.get("sym", True):
        raise StartError(f"the GPTQ weights are asymmetric, which vLLM does not serve: {remedy} with sym: true")


def of_folder(folder: Path) -> Quantization | None:
    return of_file(folder / "config.json")


def of_file(config: Path) -> Quantization | None:
    """Raises StartError as `quantization` does, and for a file that is no configuration of a model."""
    try:
        return quantization(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StartError(f"{config} tells nothing of a model: {error}") from error
    except KeyError as error:
        raise StartError(f"{config}: quantization_config says nothing of {error}") from error
