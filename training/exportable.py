"""Whether vLLM can serve what a run makes: the reasons why not, each with what to do instead.

Told at the start of a run, before hours go into it, and again before a version is promoted. The rules are vLLM 0.32's,
of `vllm/lora/peft_helper.py` and of the models that take adapters; a test holds them to the installed one. Read without
torch.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import BadRequest

Config = Mapping[str, Any]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
HEADS = ("classifier", "score")
EMBEDDINGS = ("embed_tokens", "lm_head")
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
LARGEST_HEADER = 100 * 2**20

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *EMBEDDINGS}
MODULES: Mapping[str, set[str]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Gemma3ForCausalLM": LLAMA - set(EMBEDDINGS),
    "OPTForCausalLM": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "GPT2LMHeadModel": set(),
}
"""What an adapter may change, of the architectures that are known here; others are let through, and tried by an engine
before they are promoted."""

MERGE = "`merge: true` writes whole weights, which vLLM serves"
OTHERS = {
    "PREFIX_TUNING": "vLLM has no prefix tuning: train with `method: lora`, or use it in transformers alone",
    "PROMPT_TUNING": "vLLM takes no trained prompt: train with `method: lora`, or use it in transformers alone",
}


def why_not(made: Path | Config, base: Path | Config | None = None) -> list[str]:
    """Reasons, none for what vLLM serves. `made` is a folder in Hugging Face's layout, or an adapter's configuration
    before there is a folder; `base` its base's folder or config.json, where it is at hand. Raises BadRequest for a
    folder that holds no model."""
    if isinstance(base, Path):
        base = read(base / "config.json") if (base / "config.json").is_file() else None
    if not isinstance(made, Path):
        return [*of_adapter(made, base or {}), *of_base(base or {})]
    if (made / "adapter_config.json").is_file():
        config = read(made / "adapter_config.json")
        return [*of_adapter(config, base or {}), *of_base(base or {}), *of_tensors(made, config)]
    if (made / "config.json").is_file():
        return list(of_base(read(made / "config.json")))
    raise BadRequest(f"{made} has neither config.json nor adapter_config.json: it holds no model")


def slot_rank(rank: int) -> int | None:
    """The `max_lora_rank` an engine needs for an adapter: 12 -> 16; None where it has none that large."""
    return next((one for one in RANKS if one >= rank), None)


def largest_rank(config: Config) -> int:
    return max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])


def of_adapter(config: Config, base: Config) -> Iterator[str]:
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2]
    if kind != "LORA":
        yield OTHERS.get(kind, f"vLLM serves LoRA adapters, not {kind}: train with `method: lora`")
        return
    yield from of_lora(config)
    if saved := [name for name in config.get("modules_to_save") or () if name not in HEADS]:
        yield (
            f"modules_to_save: vLLM takes {' and '.join(HEADS)} alone, not {', '.join(saved)}: leave them out, "
            f"or {MERGE}"
        )
    yield from of_targets(config, base)


def of_lora(config: Config) -> Iterator[str]:
    if config.get("use_dora"):
        yield f"vLLM does not serve DoRA: train with `method: lora`, or {MERGE}"
    if slot_rank(largest_rank(config)) is None:
        yield f"the rank {largest_rank(config)} is above vLLM's largest, {RANKS[-1]}: choose a smaller one, or {MERGE}"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield f"vLLM does not serve trained biases: say `bias: none`, or {MERGE}"
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        yield f"init_lora_weights: {init} changes the base's own weights, which vLLM does not know of: {MERGE}"
    named = ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
    for name in named:
        if config.get(name):
            yield f"vLLM does not serve adapters with {name}: leave it out, or {MERGE}"
    if config.get("trainable_token_indices"):
        yield f"vLLM does not serve trained embeddings of single tokens (trainable_token_indices): {MERGE}"


def of_targets(config: Config, base: Config) -> Iterator[str]:
    targets = config.get("target_modules")
    listed = [] if targets is None or isinstance(targets, str) else targets  # a pattern, or "all-linear": tensors tell
    last = {str(one).rpartition(".")[2] for one in listed}
    if base.get("tie_word_embeddings") and (tied := sorted(last & set(EMBEDDINGS))):
        yield (
            f"{' and '.join(tied)}: the base has one matrix for both embeddings, and an adapter changes it in one of "
            "its places only: leave them out of `targets`"
        )
    for architecture in base.get("architectures") or ():
        known = MODULES.get(architecture)
        if known is not None and not known:
            yield f"vLLM takes no adapters on {architecture}: {MERGE}"
        elif known and (unknown := sorted(last - known)):
            yield (
                f"vLLM knows no {', '.join(unknown)} in {architecture}: choose `targets` among "
                f"{', '.join(sorted(known))}, or {MERGE}"
            )


def of_base(config: Config) -> Iterator[str]:
    said = config.get("quantization_config") or {}
    if said.get("quant_method") == "bitsandbytes":
        yield (
            "the base is quantized by bitsandbytes (NF4), which vLLM on CPUs does not read: serve the adapter on the "
            "16-bit base or on a GPTQ or AWQ one"
        )


def of_tensors(folder: Path, config: Config) -> Iterator[str]:
    """What the file holds beside what the configuration says; whole embeddings vLLM would leave out unseen."""
    if str(config.get("peft_type", "LORA")) != "LORA":
        return
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        yield "adapter_model.safetensors is not there: vLLM would read a pickle, or nothing"
        return
    names = tensors(path)
    whole = [name for name in names if ".lora_" not in name]
    heads = tuple(f".{head}." for head in HEADS)
    if embeddings := [name for name in whole if any(f"{one}." in name for one in EMBEDDINGS)]:
        yield f"the adapter holds whole embeddings ({embeddings[0]}), which vLLM leaves out: {MERGE}"
    elif rest := [name for name in whole if not any(head in name for head in heads)]:
        yield f"the adapter holds weights that are no LoRA ({rest[0]}): {MERGE}"


def tensors(path: Path) -> list[str]:
    """The names in a safetensors file, from its header. Raises BadRequest."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            return [name for name in json.loads(file.read(size)) if name != "__metadata__"]
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} is no safetensors file: {error}") from error


def read(path: Path) -> Config:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadRequest(f"{path} is not a JSON object")
    return config
