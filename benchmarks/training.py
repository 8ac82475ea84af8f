"""What pre-training costs beside code that does nothing else:

    python -m benchmarks.training [--style gpt2|qwen3|llama] [--precision float32] [--rounds 7] [--json FILE]
    python -m benchmarks.training --device cuda --width 768 --layers 12 --inner 3072 --rows 16 --length 1024 --steps 40

Contestants, taking turns in one process, each for some steps on rows of equal shape with equal optimizers:

- penstock: `training.pretrain.advance`, the whole of a step: rows made of generated conversations, loss by weight,
  metrics; beside a GPU, or where `--threads` leaves a core, rows are made ahead, as in a run (`--steps` must be many
  more than are waiting, two a maker);
- in turn: the same with rows made between the steps, where they would be made ahead;
- bare: the same model and optimizers over rows that are made beforehand, and nothing else;
- plain: GPT code written in an afternoon (`benchmarks/plain_gpt.py`), of the same size; for the style gpt2;
- transformers: Hugging Face's class, with the weights of ours.

Tokens per CPU-second are of this process alone. They count where it does all of the work; tokens per second of the
clock depend on who else is at work. Where others make rows the clock counts, on a GPU read when that is through.
The rate of matrix multiplication is measured in each round at the model's own shapes, each as forward and backward use
it; the share of it is what a contestant's multiplications, attention among them, come to in its time. Ratios are
medians over rounds, each against the neighbour of its own round.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.plain_gpt import PlainGPT
from training.ahead import ahead, makers_for
from training.hardware import resolved
from training.model import Model, build, export
from training.packing import batch
from training.pretrain import Optimizers, advance, in_precision, rows_of
from training.pretrain_recipe import Recipe, load_recipe
from training.run import Run
from training.tokenizer import tokenizer_of

DEMO = Path(__file__).parent.parent / "recipes/demo/pretrain.yaml"
ADAMW = {"adamw_lr": 0.001, "warmup_steps": 10, "decay_share": 0.5, "final_share": 0.1, "clip": 1.0}
Steps = Callable[[int], None]


class Cost(NamedTuple):
    cpu_s: float
    wall_s: float


def recipe_for(arguments: argparse.Namespace, folder: Path) -> Recipe:
    """The demo's first stage without its random sequences, for long enough; GPT-2 and Llama with AdamW."""
    demo = load_recipe(DEMO)
    shape = {"layers": arguments.layers, "hidden_size": arguments.width, "heads": arguments.width // 64}
    change: dict[str, Any] = {
        "model": demo.model.model_dump()
        | shape
        | {"key_value_heads": shape["heads"], "style": arguments.style, "ffn_size": arguments.inner},
        "stages": [
            demo.stages[0].model_dump()
            | {"steps": 100_000, "rows": arguments.rows, "length": arguments.length, "random_sequences": 0}
        ],
        "threads": arguments.threads,
        "device": arguments.device,
        "precision": arguments.precision,
        "validation": None,
        "accumulation": 1,
        "checkpoint_every": 100_000,
        "separate_documents": False,
    }
    if arguments.style != "qwen3":
        change["optimizer"] = ADAMW
    return resolved(Recipe.model_validate(demo.model_dump() | change), folder, resume=False)


def penstock(recipe: Recipe, folder: Path, makers: int, stack: ExitStack) -> Steps:
    run = Run(folder, recipe.model_dump(mode="json"), recipe.steps)
    tokenizer = tokenizer_of(recipe)
    rows = stack.enter_context(ahead(partial(rows_of, recipe, tokenizer, [{}]), range(recipe.steps), makers))
    model = build(recipe.model, len(tokenizer), recipe.seed).to(recipe.device)
    optimizers = Optimizers.of(model, recipe.optimizer)
    done = iter(range(recipe.steps))

    def go(steps: int) -> None:
        for _ in range(steps):
            advance(run, next(done), recipe, next(rows), [], model, optimizers)

    return go


def alone(
    recipe: Recipe, model: nn.Module, loss_of: Callable[[Tensor], Tensor], rows: list[Tensor], optimizers: Optimizers
) -> Steps:
    """The shortest loop that trains: rows made beforehand, forward, backward, clip, step."""
    optimizers.at_share(0.1)
    position = iter(range(10**9))

    def go(steps: int) -> None:
        for _ in range(steps):
            with in_precision(recipe):
                loss = loss_of(rows[next(position) % len(rows)])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
            optimizers.step()

    return go


def contestants(recipe: Recipe, folder: Path, stack: ExitStack) -> dict[str, Steps]:
    tokenizer = tokenizer_of(recipe)
    makers = makers_for(recipe.device, recipe.threads)
    found = {"penstock": penstock(recipe, folder / "run", makers, stack)}
    if makers:
        found["in turn"] = penstock(recipe, folder / "in turn", 0, stack)
    rows = [batch(tokenizer, recipe.stages[0], recipe.seed, step).tokens.to(recipe.device) for step in range(8)]
    bare = build(recipe.model, len(tokenizer), recipe.seed).to(recipe.device)
    (folder / "theirs").mkdir()
    export(bare, recipe.model, tokenizer, folder / "theirs", dtype=torch.float32)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder / "theirs", dtype=torch.float32)
    theirs.to(recipe.device).train()

    def mean_loss(tokens: Tensor) -> Tensor:
        return cross_entropy(bare(tokens)[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())

    def optimizers(model: nn.Module) -> Optimizers:
        return Optimizers.of(model, recipe.optimizer)

    found |= {
        "bare": alone(recipe, bare, mean_loss, rows, optimizers(bare)),
        "transformers": alone(
            recipe, theirs, lambda tokens: theirs(input_ids=tokens, labels=tokens).loss, rows, optimizers(theirs)
        ),
    }
    if recipe.model.style == "gpt2":
        shape = recipe.model
        plain = PlainGPT(len(tokenizer), shape.hidden_size, shape.layers, shape.heads, shape.ffn_size, shape.max_length)
        plain.to(recipe.device)
        adamw = torch.optim.AdamW(plain.parameters(), lr=recipe.optimizer.adamw_lr, betas=(0.9, 0.95), fused=True)
        found["plain"] = alone(recipe, plain, plain, rows, Optimizers([(adamw, recipe.optimizer.adamw_lr)]))
    return found


def matrices(model: Model) -> list[tuple[int, int]]:
    """(in, out) of every multiplication of a forward pass: the tied embedding is one, too, as what writes."""
    inner = [tuple(weight.shape) for name, weight in model.named_parameters() if weight.ndim == 2]
    vocabulary = [shape for shape in inner if model.vocab_size in shape]
    shapes = [shape for shape in inner if shape not in vocabulary and shape[0] != model_length(model)]
    return [*shapes, vocabulary[0]]  # type: ignore[list-item]


def model_length(model: Model) -> int:
    places = [weight.size(0) for name, weight in model.named_parameters() if name.endswith("wpe.weight")]
    return places[0] if places else -1


def multiplied(
    shapes: list[tuple[int, int]], tokens: int, dtype: torch.dtype, device: str
) -> Iterator[Callable[[], Tensor]]:
    """Forward, and backward to the input and to the weight."""
    for inward, outward in shapes:
        sizes = ((tokens, inward), (inward, outward), (tokens, outward))
        x, w, y = (torch.randn(a, b, device=device).to(dtype) for a, b in sizes)
        yield lambda x=x, w=w: x @ w  # type: ignore[misc]
        yield lambda y=y, w=w: y @ w.T  # type: ignore[misc]
        yield lambda x=x, y=y: x.T @ y  # type: ignore[misc]


def timed(work: Callable[[], object], device: str) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def measured(recipe: Recipe, rounds: int, steps: int) -> dict[str, Any]:
    """Costs of each contestant in each round, and of the bare multiplications of as many steps."""
    stage, shape = recipe.stages[0], recipe.model
    tokens = stage.rows * stage.length
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        racing = contestants(recipe, Path(folder), stack)
        shapes = matrices(build(shape, len(tokenizer_of(recipe)), 1))
        dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
        products = list(multiplied(shapes, tokens, dtype, recipe.device))

        def multiplications(count: int) -> None:
            for product in products * count:
                product()

        racing["multiplications"] = multiplications
        for go in racing.values():
            timed(partial(go, 3), recipe.device)
        costs: dict[str, list[Cost]] = {name: [] for name in racing}
        names = list(racing)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                costs[name].append(timed(lambda name=name: racing[name](steps), recipe.device))  # type: ignore[misc]
    flops = 6 * tokens * sum(a * b for a, b in shapes)
    attention = 6 * tokens * shape.layers * stage.length * shape.hidden_size
    return {
        "costs": costs,
        "tokens": tokens * steps,
        "flops": flops * steps,
        "attention": attention * steps,
        "by": "wall_s" if makers_for(recipe.device, recipe.threads) else "cpu_s",
    }


def report(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each contestant: tokens per second, how it compares with the faster of bare and plain, the share reached."""
    costs = found["costs"]
    counted = {name: [getattr(cost, found["by"]) for cost in rounds] for name, rounds in costs.items()}
    bases = [name for name in ("bare", "plain") if name in costs]
    best = min(bases, key=lambda name: statistics.median(counted[name]))
    rate = [found["flops"] / seconds for seconds in counted["multiplications"]]
    lines = {}
    for name, rounds in costs.items():
        cpu, wall = (statistics.median(values) for values in zip(*rounds, strict=True))
        own = counted[name]
        work = found["flops"] + (0 if name == "multiplications" else found["attention"])
        lines[name] = {
            "tokens_per_cpu_s": found["tokens"] / cpu,
            "tokens_per_s": found["tokens"] / wall,
            f"of_{best}": statistics.median(base / one for one, base in zip(own, counted[best], strict=True)),
            "gflops": work / statistics.median(own) / 1e9,
            "share": statistics.median(work / one / reached for one, reached in zip(own, rate, strict=True)),
        }
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="What pre-training costs beside code that does nothing else.")
    parser.add_argument("--style", choices=["gpt2", "qwen3", "llama"], default="gpt2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(arguments, Path(folder))
    lines = report(measured(recipe, arguments.rounds, arguments.steps))
    names = list(next(iter(lines.values())))
    device = torch.cuda.get_device_name() if recipe.device == "cuda" else f"{arguments.threads} threads"
    print(f"{recipe.model.style}, {recipe.precision}, {device}, {arguments.rounds} rounds")
    print("".join([f"{'':16}", *(f"{name:>18}" for name in names)]))
    for contestant, figures in lines.items():
        print("".join([f"{contestant:16}", *(f"{value:18,.2f}" for value in figures.values())]))
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=2))


SIZES = {"width": 192, "layers": 4, "inner": 512, "rows": 16, "length": 256, "threads": 1, "rounds": 7, "steps": 15}

if __name__ == "__main__":
    main()
