"""The training stack's own answers, for comparison with what is served. `evals/parity.py` runs it as a process:

    python -m evals.reference < question.json > answer.json

A process of its own, so that its memory is free again for the next engine, and Ctrl-C ends it at once. Weights are read
from safetensors alone, computed with in float32, and no code of a folder's is run.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

MARK = "The answer is here."
PREFIX = "base_model.model."


def ends(speaks: Path, serves: Path) -> dict[str, Any]:
    """The token by which the chat template of `speaks` ends a turn, and those at which an engine that was given the
    folder `serves` ends an answer. `end` is None where the template has no special token there."""
    tokenizer = AutoTokenizer.from_pretrained(speaks, local_files_only=True, trust_remote_code=False)
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": MARK}]
    _, _, tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(MARK)
    special = {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    after = tokenizer(tail, add_special_tokens=False)["input_ids"]
    end = next((token for token in after if token in special), None)
    return {"end": end, "text": None if end is None else tokenizer.decode([end]), "stops": sorted(stops(serves))}


def stops(folder: Path) -> set[int]:
    """At which tokens `generate` ends: the generation configuration's, else the model's own."""
    try:
        found = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        found = json.loads((folder / "config.json").read_bytes()).get("eos_token_id")
    return {found} if isinstance(found, int) else set(found or ())


def parity(base: Path, adapter: Path | None, speaks: Path, asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each answer read once by the model; its greedy answer is the same if every token is the likeliest after those
    before it. The prompts are rendered anew."""
    tokenizer = AutoTokenizer.from_pretrained(speaks, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    by = "transformers"
    if adapter is not None:
        model, by = adapted(model, adapter)
    model.train(False)
    ended = stops(base)
    items = []
    for one in asked:
        text = tokenizer.apply_chat_template(
            one["messages"], tools=one["tools"] or None, add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        if prompt != one["prompt"]:
            items.append({"id": one["id"], "rendered": first_difference(prompt, one["prompt"])})
            continue
        ids = torch.tensor([prompt + one["tokens"]])  # (1, T)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()  # (answer, V)
        items.append({"id": one["id"], **read(logits, one["tokens"], one["logprobs"], one["finish_reason"], ended)})
    return {"by": by, "items": items}


def read(
    logits: torch.Tensor, tokens: Sequence[int], logprobs: Sequence[float], finish: str, ended: Collection[int]
) -> dict[str, Any]:
    """`logits` (T, V) are of the places of `tokens` (T), `logprobs` what the engine says of them. Of every token that
    is not the likeliest: its place, and by how many nats another is likelier (`differences`, [place, served, likeliest,
    nats]); the largest difference of the two log-probabilities (`apart`); what is wrong with its end."""
    own = torch.log_softmax(logits, -1)
    likeliest = own.argmax(-1)  # (T)
    of_tokens = own.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    gaps = own.max(-1).values - of_tokens
    places = [place for place, token in enumerate(tokens) if int(likeliest[place]) != token]
    inside = [place for place, token in enumerate(tokens[:-1]) if token in ended]
    wrong = None
    if inside:
        wrong = f"goes on after its end at token {inside[0]}"
    elif finish == "stop" and tokens and tokens[-1] not in ended:
        wrong = f"ends at the token {tokens[-1]}, where the training stack goes on"
    return {
        "differences": [[place, tokens[place], int(likeliest[place]), float(gaps[place])] for place in places],
        "apart": float((of_tokens - torch.tensor(logprobs)).abs().max()) if tokens else 0.0,
        "end": wrong,
    }


def adapted(model: Any, folder: Path) -> tuple[Any, str]:
    """By PEFT where it is installed, as in training; else by the definition of LoRA, W + scale B A."""
    try:
        import peft  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return merged(model, folder), "transformers, LoRA added to the weights"
    return peft.PeftModel.from_pretrained(model, folder), f"transformers and peft {peft.__version__}"


def merged(model: Any, folder: Path) -> Any:
    """In place. Hu et al. 2021, section 4.1: scale is alpha / r; with `use_rslora` alpha / sqrt(r) (Kalajdzievski
    2023). Raises ValueError for what needs PEFT."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    if (
        config.get("peft_type") != "LORA"
        or config.get("use_dora")
        or config.get("rank_pattern")
        or config.get("alpha_pattern")
    ):
        raise ValueError("this adapter is no plain LoRA: install peft to compare it (the extra `train`)")
    tensors = load_file(folder / "adapter_model.safetensors")
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    with torch.no_grad():
        for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
            module = name.removesuffix(".lora_A.weight")
            down, up = tensors.pop(name).float(), tensors.pop(f"{module}.lora_B.weight").float()
            change = scale * up @ down  # (out, r) (r, in)
            weight = model.get_submodule(module.removeprefix(PREFIX)).weight
            weight += change.T if config.get("fan_in_fan_out") else change
    if tensors:
        raise ValueError(f"this adapter has more than LoRA's matrices ({min(tensors)}): install peft to compare it")
    return model


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """[1, 2, 3], [1, 2] -> 2."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def answered(question: Mapping[str, Any]) -> dict[str, Any]:
    if question["work"] == "ends":
        return ends(Path(question["speaks"]), Path(question["serves"]))
    adapter = Path(question["adapter"]) if question["adapter"] else None
    return parity(Path(question["base"]), adapter, Path(question["speaks"]), question["asked"])


def main() -> None:
    question = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    try:
        answer = answered(question)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    json.dump(answer, out)


if __name__ == "__main__":
    main()
