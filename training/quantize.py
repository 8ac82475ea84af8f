"""Quantize a model, and report what it cost:

    python -m training.quantize recipes/demo/gptq.yaml --out runs/gptq

Reads top to bottom: recipe, texts, the quantized weights, what they stand for (the dense twin), the loss of each
layer, perplexity before and after, the report. GPTQ and AWQ are computed by GPTQModel in an environment of its own
(`make quantizer` makes it); int8 here. The run folder holds `model/`, which vLLM serves, `report.json`, and the
`evaluation.txt` whose perplexity it tells.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.dense_twin import copy_beside, write_dense_twin
from engine.launch import model_path
from evals.local import Local
from evals.perplexity import perplexity
from penstock.errors import StartError
from penstock.references import is_reference
from training.base import ADAPTER, Base, registered, unchanged
from training.data import conversation
from training.held_out import SEED as HELD_OUT
from training.int8 import rounded_by_token, write_int8
from training.quantize_recipe import LAYERS, QuantizeRecipe, Texts, layers, linear_weights, refuse_widths
from training.recipe import digests, load
from training.run import Run, command, resolved_recipe

REPOSITORY = Path(__file__).parent.parent
QUANTIZER = REPOSITORY / ".venv-quantize" / "bin" / "python"
FOUR_BITS = Path(__file__).with_name("four_bits.py")
# What GPTQModel leaves beside the weights: figures that are in the report, the configuration a second time.
GPTQMODELS_OWN = ("quant_log.csv", "quantize_config.json")
BATCH = 4


def quantize(recipe_path: Path, out: Path, *, resume: bool) -> None:
    """A killed run begins again with `--resume`: it takes seconds for small models, and GPTQModel keeps no state."""
    recipe = load(recipe_path, QuantizeRecipe)
    before = (resolved_recipe(out) or {}).get("resolved", {}) if resume else {}
    base = dense_model(before.get("base", recipe.model))
    source = Path(base.place)
    matrices = linear_weights(source)
    if recipe.method != "int8":
        refuse_widths(matrices, recipe.group_size)
        refuse_without_quantizer()
    files = [file for part in (recipe.calibration, recipe.evaluation) if (file := part.file)]
    facts = {"base": base.name, "weights": unchanged([base], before, out), "digests": digests(files)}
    run = Run(out, {**recipe.model_dump(), "resolved": facts}, steps=layers(matrices), resume=resume)
    if run.finished:
        return
    torch.set_num_threads(recipe.threads)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    calibration, evaluation = (
        as_tokens(conversations(part, seed), tokenizer, part.length)
        for part, seed in ((recipe.calibration, f"calibration/{recipe.seed}"), (recipe.evaluation, HELD_OUT))
    )

    with run.writing_model() as folder:
        begun = time.monotonic()
        own: dict[str, float] = {}
        if recipe.method == "int8":
            write_int8(source, folder, matrices)
        else:
            own = by_gptqmodel(recipe, source, folder, calibration, run.folder)
        seconds = time.monotonic() - begun
        copy_beside(source, folder)
        with dense_twin(folder, run.folder) as twin:
            losses = losses_by_layer(source, twin, evaluation)
            text = str(tokenizer.decode([token for one in evaluation for token in one]))
            after = RoundedActivations(twin, matrices) if recipe.method == "int8" else Local(twin)
            found = [measured(text, one, recipe.evaluation.length) for one in (Local(source), after)]
        for step, (name, loss) in enumerate(losses.items()):
            run.log(step, layer=name, layer_loss=loss)
        run.log(run.steps, perplexity_before=found[0], perplexity_after=found[1])
        report = {
            "method": recipe.method,
            "bits": 8 if recipe.method == "int8" else 4,
            "group_size": None if recipe.method == "int8" else recipe.group_size,
            "bytes": {"before": weight_bytes(source), "after": weight_bytes(folder)},
            "perplexity": {"before": found[0], "after": found[1]},
            "loss": losses,
            "loss_by_gptqmodel": own,
            "quantize_s": round(seconds, 1),
        }
        (run.folder / "evaluation.txt").write_text(text, encoding="utf-8")
        (run.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report), flush=True)


def dense_model(name: str) -> Base:
    """Raises StartError, NotFound for what is not registered."""
    base = registered(name) if is_reference(name) else Base(name, model_path(name))
    source = Path(base.place)
    if not source.is_dir():
        raise StartError(f"model: {name} is no folder: download it first, or name a folder, a registered one or `demo`")
    if (source / ADAPTER).is_file():
        raise StartError(f"model: {name} is an adapter: quantize the whole weights that `merge: true` writes")
    if json.loads((source / "config.json").read_text(encoding="utf-8")).get("quantization_config"):
        raise StartError(f"{base.name} is quantized already: quantize the dense model that it was made from")
    return base


def refuse_without_quantizer() -> None:
    if not QUANTIZER.is_file():
        raise StartError(
            f"GPTQ and AWQ need GPTQModel in an environment of its own, and {QUANTIZER.parent.parent} is not there: "
            "run `make quantizer` (a minute), or use method: int8"
        )


def conversations(part: Texts, seed: str) -> Iterator[Mapping[str, Any]]:
    """`part.texts` of them, the same for the same seed. Raises StartError for a line that is no conversation."""
    if part.file is None:
        for index in range(part.texts):
            yield conversation(part.families[index % len(part.families)], seed, index)
        return
    lines = [
        (at, line) for at, line in enumerate(part.file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()
    ]
    for at, line in Random(seed).sample(lines, min(part.texts, len(lines))):
        try:
            item = json.loads(line)
            item["messages"][0]["role"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StartError(f'{part.file}:{at}: expected {{"messages": [...], "tools": [...]}}: {error!r}') from error
        yield item


def as_tokens(items: Iterable[Mapping[str, Any]], tokenizer: Any, length: int) -> list[list[int]]:
    """Conversations as the model sees them, by its own template."""
    texts = [tokenizer.apply_chat_template(one["messages"], tools=one.get("tools"), tokenize=False) for one in items]
    return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:length] for text in texts]


def by_gptqmodel(
    recipe: QuantizeRecipe, source: Path, out: Path, calibration: list[list[int]], run: Path
) -> dict[str, float]:
    """Module -> the loss that GPTQModel gives it. Raises StartError with the end of its log, which stays in the run.

    It works in a folder of its own, where it leaves logs, and where one that has outlived a killed run harms nobody.
    """
    log = run / "quantizer.log"
    print(f"GPTQModel is at work; it tells more in {log}", flush=True)
    with tempfile.TemporaryDirectory(prefix=".gptqmodel-", dir=run.resolve()) as name:
        work = Path(name)
        job = {
            "model": str(source.resolve()),
            "out": str(work / "model"),
            "method": recipe.method,
            "group_size": recipe.group_size,
            "calibration": calibration,
            "batch": BATCH,
            "figures": str(work / "figures.json"),
        }
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        env = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads), "HF_HUB_OFFLINE": "1"}
        env.pop("PYTHONPATH", None)
        command = [str(QUANTIZER), "-P", str(FOUR_BITS.resolve()), "job.json"]
        with log.open("wb") as output:
            ended = subprocess.run(command, cwd=work, stdout=output, stderr=output, env=env, check=False)
        if ended.returncode:
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise StartError(f"GPTQModel ended with {ended.returncode}; the end of {log}:\n{said}")
        for file in (work / "model").iterdir():
            if file.name not in GPTQMODELS_OWN:
                shutil.move(file, out / file.name)
        told = json.loads((work / "figures.json").read_text(encoding="utf-8"))
    return {f"{LAYERS}.{one['layer']}.{one['module']}": float(one["loss"]) for one in told}


@contextmanager
def dense_twin(quantized: Path, beside: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".twin-", dir=beside) as folder:
        twin = Path(folder) / "model"
        write_dense_twin(quantized, twin)
        yield twin


def losses_by_layer(source: Path, twin: Path, texts: list[list[int]]) -> dict[str, float]:
    """Layer -> what is wrong with what it adds, given what the dense model's layer is given: |f(h) - g(h)|^2 over
    |f(h) - h|^2, of all tokens together. By layer, because AWQ moves factors from one matrix to another."""
    before, after = (loaded(folder) for folder in (source, twin))
    wrong: dict[str, float] = {}
    added: dict[str, float] = {}

    def compared(name: str, other: torch.nn.Module) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            f, g = (one[0] if isinstance(one, tuple) else one for one in (output, other(*args, **kwargs)))
            wrong[name] = wrong.get(name, 0.0) + float((f - g).square().sum())
            added[name] = added.get(name, 0.0) + float((f - given).square().sum())

        return hook

    for index, layer in enumerate(before.get_submodule(LAYERS)):
        name = f"{LAYERS}.{index}"
        layer.register_forward_hook(compared(name, after.get_submodule(name)), with_kwargs=True)
    with torch.inference_mode():
        for text in texts:
            before(input_ids=torch.tensor([text]), use_cache=False)  # (1, T)
    return {name: wrong[name] / added[name] for name in wrong}


def loaded(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.train(False)


class RoundedActivations(Local):
    """The dense twin of an int8 model, its matrices given what they are given in the engine: 8 bits for each token."""

    def __init__(self, folder: Path, matrices: Container[str]) -> None:
        super().__init__(folder)
        for name, module in self._model.named_modules():
            if f"{name}.weight" in matrices:
                module.register_forward_pre_hook(lambda _, args: (rounded_by_token(args[0]), *args[1:]))


def measured(text: str, source: Local, length: int) -> float:
    """Token perplexity: what every model here shares is the tokenizer."""
    return asyncio.run(perplexity(text, source, length)).token_perplexity


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def table(report: Mapping[str, Any]) -> str:
    size, found = report["bytes"], report["perplexity"]
    rows = [
        ("", "before", "after", "after / before"),
        ("bytes", f"{size['before']:,}", f"{size['after']:,}", f"{size['after'] / size['before']:.3f}"),
        ("perplexity", f"{found['before']:.4f}", f"{found['after']:.4f}", f"{found['after'] / found['before']:.4f}"),
        *((f"loss of {name}", "", f"{loss:.5f}", "") for name, loss in report["loss"].items()),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(one.rjust(w) for one, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    command(quantize, "Quantize a model, and report what it cost.")
