"""What vLLM cannot serve, beside what the installed vLLM itself says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BadRequest
from training.exportable import MODULES, RANKS, slot_rank, why_not

DEMO = Path(__file__).parents[2] / "recipes/demo/model"
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "down_proj"]}
REFUSED: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["embed_tokens"]},
    "biases": {"lora_bias": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "use_qalora": {"use_qalora": True},
}
TAKEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "a head": {"modules_to_save": ["score"]},
    "an init that leaves the base alone": {"init_lora_weights": "gaussian"},
}
ASK_VLLM = """
import json, sys
from typing import get_args
from vllm.config.lora import MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper
configs = json.load(sys.stdin)
said = {name: PEFTHelper.from_dict(config)._validate_features() for name, config in configs.items()}
print(json.dumps({"ranks": get_args(MaxLoRARanks), "refused": [name for name, why in said.items() if why]}))
"""


def test_an_adapter_is_refused_exactly_where_vllm_refuses_it() -> None:
    configs = {name: LORA | change for name, change in (REFUSED | TAKEN).items()}
    asked = subprocess.run(
        [sys.executable, "-c", ASK_VLLM], input=json.dumps(configs), capture_output=True, text=True, check=True
    )
    theirs = json.loads(asked.stdout.splitlines()[-1])

    assert theirs == {"ranks": list(RANKS), "refused": list(REFUSED)}
    for name, config in configs.items():
        reasons = why_not(config)
        assert (name in " ".join(reasons)) == (name in REFUSED), name
        assert all("merge: true" in reason for reason in reasons)


def test_architectures_take_adapters_where_vllms_classes_say_so() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    models = Path(spec.origin).parent / "model_executor/models"
    registry = (models / "registry.py").read_text()
    for architecture, modules in MODULES.items():
        file, name = (
            registry.split(f'"{architecture}": (')[1].split(")")[0].replace('"', "").replace(" ", "").split(",")[:2]
        )
        source = (models / f"{file.strip()}.py").read_text()
        bases = source.split(f"class {name.strip()}(")[1].split("):")[0]
        assert ("SupportsLoRA" in bases or "LlamaForCausalLM" in bases) == bool(modules), architecture


@pytest.mark.parametrize(("rank", "slot"), [(1, 1), (2, 8), (12, 16), (300, 320), (512, 512), (513, None)])
def test_a_rank_goes_into_the_next_larger_slot(rank: int, slot: int | None) -> None:
    assert slot_rank(rank) == slot
    assert bool(why_not(LORA | {"r": rank})) == (slot is None)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "IA3"])
def test_what_is_no_lora_is_refused(kind: str) -> None:
    [reason] = why_not({"peft_type": kind})
    assert "method: lora" in reason


def test_targets_are_held_to_the_base() -> None:
    assert why_not(LORA, DEMO) == []
    [unknown] = why_not(LORA | {"target_modules": ["q_proj", "c_attn"]}, DEMO)
    assert "vLLM knows no c_attn in Qwen3ForCausalLM" in unknown
    [tied] = why_not(LORA | {"target_modules": ["model.embed_tokens"]}, DEMO)
    assert "one matrix for both embeddings" in tied
    [none] = why_not(LORA, {"architectures": ["GPT2LMHeadModel"]})
    assert "no adapters on GPT2LMHeadModel" in none
    [nf4] = why_not(LORA, {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert "NF4" in nf4


def test_a_folder_is_judged_by_what_its_file_holds(tmp_path: Path) -> None:
    def holds(*names: str) -> list[str]:
        header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
        (tmp_path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        return why_not(tmp_path, DEMO)

    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    assert "not there" in why_not(tmp_path)[0]
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert holds(layer) == []
    assert "whole embeddings" in holds(layer, "base_model.model.model.embed_tokens.weight")[0]
    assert "no LoRA" in holds(layer, "base_model.model.model.norm.weight")[0]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"pickle")
    with pytest.raises(BadRequest, match="no safetensors file"):
        why_not(tmp_path)


def test_whole_models_are_served_and_empty_folders_are_none(tmp_path: Path) -> None:
    assert why_not(DEMO) == []
    with pytest.raises(BadRequest, match="holds no model"):
        why_not(tmp_path)
