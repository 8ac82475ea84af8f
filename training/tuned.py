"""What of a model is trained, by method, and how the result is written: whole weights, or an adapter by PEFT."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from penstock.errors import BadRequest, StartError
from training import base as bases
from training.base import Base, adapter_of, config_of, device, ends_with, tokenizer_of, unchanged, weights_of
from training.exportable import why_not
from training.hardware import precision_of
from training.recipe import digests
from training.run import Run, resolved_recipe
from training.tuned_card import write_card
from training.tuning_recipe import LORA_KINDS, Dpo, Sft

Recipe = Sft | Dpo

MISSING = "{} is not installed: run `requirements/install .venv train`"
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
)


class Begun(NamedTuple):
    """What a run is to begin from; `start` is an adapter to go on with, `weights` are digests by the names of both,
    `reasons` those for which vLLM will not serve the result."""

    base: Base
    start: Base | None
    weights: Mapping[str, str]
    precision: str
    tokenizer: PreTrainedTokenizerBase
    reasons: list[str]

    @property
    def padding(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def resolved(self, recipe: Recipe, steps: int) -> dict[str, Any]:
        """The recipe as the run's folder has it: what was found out beside what was said."""
        files = [part.path for part in recipe.data] + ([recipe.chat_template] if recipe.chat_template else [])
        facts = {"base": self.base.name, "precision": self.precision, "steps": steps, "digests": digests(files)}
        if self.start:
            facts["start"] = self.start.name
        if self.weights:
            facts["weights"] = self.weights
        return recipe.model_dump(mode="json") | {"resolved": facts}


def begin(recipe: Recipe, out: Path, *, resume: bool) -> Begun:
    """A run that goes on keeps the base that its alias pointed to, and its precision. Raises BadRequest, and Conflict
    where the weights that it began from are others now."""
    torch.set_num_threads(recipe.threads)
    before = (resolved_recipe(out) or {}).get("resolved", {}) if resume else {}
    base = bases.found(before.get("base", recipe.base))
    named = before.get("start", recipe.adapter.start)
    start = adapter_of(named, base) if named else None
    precision = before.get("precision") or precision_of(recipe.precision, device())
    tokenizer = tokenizer_of(base, recipe.chat_template, recipe.eos_token)
    positions = config_of(base).get("max_position_embeddings")
    if positions and recipe.length > positions:
        raise BadRequest(f"length: {recipe.length} is more than the {positions} positions of {base.name}")
    weights = unchanged([base, start] if start else [base], before, out)
    return Begun(base, start, weights, precision, tokenizer, check_export(recipe, base, tokenizer, start))


def adapter_config(recipe: Recipe, start: Base | None = None) -> Any:
    """PEFT's configuration of an adapter, its own where there is one to go on with. Raises StartError where PEFT is not
    installed, BadRequest for an adapter of another kind."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for kernels that a CPU does without
    try:
        import peft
    except ImportError as error:
        raise StartError(MISSING.format("PEFT")) from error
    if start:
        said = peft.PeftConfig.from_pretrained(start.place)
        if said.peft_type != "LORA" or getattr(said, "use_dora", False):
            raise BadRequest(f"adapter.start: {start.name} is no plain LoRA adapter")
        return said
    part = recipe.adapter
    if recipe.method == "prefix":
        return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=part.virtual_tokens)
    if recipe.method == "prompt":
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=part.virtual_tokens)
    assert recipe.method in LORA_KINDS
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=part.rank,
        lora_alpha=part.alpha,
        lora_dropout=part.dropout,
        use_rslora=part.rslora,
        use_dora=recipe.method == "dora",
        target_modules=part.targets if isinstance(part.targets, str) else list(part.targets),
        modules_to_save=list(part.modules_to_save) or None,
    )


def check_export(
    recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, start: Base | None = None
) -> list[str]:
    """Print why vLLM will not serve what the run makes. Raises BadRequest with it under `export: required`."""
    reasons = [] if recipe.method == "full" else not_served(recipe, base, tokenizer, start)
    said = f"vLLM will not serve the adapter of {recipe.method}:\n" + "\n".join(f"  {reason}" for reason in reasons)
    if reasons and recipe.export == "required" and not recipe.merge:
        raise BadRequest(f"{said}\nNothing has run; `export: warn` trains it nevertheless")
    if reasons:
        print(said, flush=True)
    return reasons


def not_served(recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, start: Base | None = None) -> list[str]:
    """An engine gives an adapter the base's template and stops where the base stops, whatever lies in its folder."""
    reasons = why_not(adapter_config(recipe, start).to_dict(), config_of(base))
    if tokenizer.eos_token_id not in ends_with(base, tokenizer):
        reasons.append(
            f"engines that serve {base.name} do not stop at {tokenizer.eos_token!r}, with which the adapter learns to "
            "end: `merge: true` writes weights that say so"
        )
    own = tokenizer_of(base, None, None)
    if any(prompt(own, probe) != prompt(tokenizer, probe) for probe in PROBES):
        reasons.append(
            f"engines prompt the adapter by the chat template of {base.name}, which is another than it learns: "
            "`merge: true` writes weights with a template of their own"
        )
    return reasons


def prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str | None:
    """As text, None where the template refuses such messages, or there is none."""
    from jinja2 import TemplateError

    try:
        said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError):
        return None
    return cast("str", said)


def prepared(recipe: Recipe, base: Base, precision: str, start: Base | None = None) -> nn.Module:
    """The base, all of it to be trained in float32, or frozen in `precision` beneath an adapter in float32."""
    frozen = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if recipe.method == "full":
        model: nn.Module = weights_of(base, torch.float32)
    else:
        below = quantized(base, frozen) if recipe.method == "qlora" else weights_of(base, frozen)
        model = gone_on_with(below, start, base) if start else adapted(below, recipe, base)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    return model


def adapted(model: PreTrainedModel, recipe: Recipe, base: Base) -> nn.Module:
    """With a fresh adapter, which changes nothing yet if it is LoRA. Raises BadRequest with PEFT's words."""
    import peft

    torch.manual_seed(recipe.seed)
    try:
        made = peft.get_peft_model(model, adapter_config(recipe))
    except (ValueError, ImportError) as error:
        raise BadRequest(f"the adapter cannot be put on {base.name}: {error}") from error
    made.peft_config["default"].base_model_name_or_path = base.name
    return cast("nn.Module", made)


def gone_on_with(model: PreTrainedModel, start: Base, base: Base) -> nn.Module:
    """With an adapter that was trained before, in float32, to be trained on. Raises BadRequest with PEFT's words."""
    import peft

    try:
        made = peft.PeftModel.from_pretrained(model, start.place, is_trainable=True)
    except (ValueError, RuntimeError, ImportError) as error:
        raise BadRequest(f"the adapter {start.name} cannot be put on {base.name}: {error}") from error
    made.peft_config["default"].base_model_name_or_path = base.name
    return cast("nn.Module", made)


def quantized(base: Base, computing: torch.dtype) -> PreTrainedModel:
    """NF4 with its constants quantized, too, as QLoRA has it (Dettmers et al. 2023). Raises StartError."""
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError as error:
        raise StartError(MISSING.format("bitsandbytes")) from error
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computing,
    )
    model = weights_of(base, computing, quantization_config=nf4, device_map={"": device()})
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Where a CPU has AVX512_BF16, one forward pass outside training would repack the weights for good into a
            # form through which no gradient flows, and say so in a warning alone.
            module.support_avx512bf16_for_cpu = False
    ready = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    return cast("PreTrainedModel", ready)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """What a checkpoint holds of `trained`."""
    for name, weight in trained(model).items():
        weight.copy_(saved[name])


def finish(run: Run, model: nn.Module, begun: Begun, recipe: Recipe) -> None:
    """`model/`, and before it `merged/` where the recipe asks for it, each with its card."""
    facts = begun.resolved(recipe, run.steps)["resolved"]
    with run.writing_model() as folder:
        write(model, begun.tokenizer, recipe, folder)
        if recipe.merge:
            merged = run.folder / "merged"
            write_merged(begun.base, folder, begun.tokenizer, recipe, merged)
            write_card(merged, recipe, facts, run.folder, reasons=[])
        write_card(folder, recipe, facts, run.folder, begun.reasons)


def write(model: nn.Module, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path) -> None:
    """With the tokenizer and the chat template that it was trained with."""
    if recipe.method == "full":
        write_whole(cast("PreTrainedModel", model), tokenizer, recipe, folder)
        return
    embeddings = any(name.endswith("embed_tokens") for name in recipe.adapter.targets if recipe.method in LORA_KINDS)
    model.save_pretrained(folder, save_embedding_layers=embeddings)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)


def write_merged(base: Base, adapter: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path) -> None:
    """The adapter added to the base's weights in float32, not to those it was trained on: these may be NF4."""
    import peft

    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    whole = peft.PeftModel.from_pretrained(weights_of(base, torch.float32), adapter)
    write_whole(whole.merge_and_unload(), tokenizer, recipe, fresh)
    fresh.rename(folder)


def write_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path) -> None:
    """An engine stops where the model has learned to end, beside where the base ended."""
    model.config.use_cache = True
    if (settings := model.generation_config) is not None:
        said = settings.eos_token_id
        ends = [] if said is None else said if isinstance(said, list) else [said]
        ends = [tokenizer.eos_token_id, *(one for one in ends if one != tokenizer.eos_token_id)]
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.to(torch.bfloat16 if recipe.saved_dtype == "bfloat16" else torch.float32).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
