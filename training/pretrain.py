"""Train a small chat model from nothing, on a laptop:

    python -m training.pretrain recipes/demo/pretrain.yaml --out runs/demo [--resume]

Reads top to bottom: recipe, loss, model, loop, export. Every batch is a function of the seed and
the step, so a killed run continues with `--resume` on the very loss curve it left. The run folder
holds `recipe.yaml`, `metrics.jsonl`, `checkpoint.pt` and, at the end, `model/`: a directory that
transformers and vLLM load, with a model card that says what was measured on it.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.card import Facts, write_card, write_checksums
from training.data import conversation
from training.evaluate_demo import exact_answers
from training.muon import Muon
from training.packing import batch
from training.pretrain_recipe import OptimizerPart, Recipe, load_recipe
from training.tokenizer import train_tokenizer

DEFAULT_TEMPERATURE = 0.1


def weighted_loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of each next token, weighted by that next token's weight."""
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    following = weights[:, 1:].flatten()
    return (losses * following).sum() / following.sum()


def learning_rate_share(step: int, steps: int, optimizer: OptimizerPart) -> float:
    """The share of the peak learning rate at a step: warm-up, plateau, linear decay."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    left = (steps - step) / (steps * optimizer.decay_share)
    return min(1.0, optimizer.final_share + (1 - optimizer.final_share) * left)


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    names = list(recipe.stages[0].families)
    items = (conversation(names[i % len(names)], f"tokenizer/{recipe.seed}", i) for i in range(recipe.tokenizer.items))
    return train_tokenizer(
        (text for item in items for text in _plain_texts(item)),
        recipe.tokenizer.vocab_size,
        recipe.model.max_length,
    )


def _plain_texts(item: dict[str, Any]) -> Iterator[str]:
    for message in item["messages"]:
        yield message["content"] or ""
        yield from (call["function"]["arguments"] for call in message.get("tool_calls", ()))
    for tool in item.get("tools", ()):
        yield f"{tool['function']['name']}: {tool['function']['description']}"


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Qwen3 is a Llama that normalizes queries and keys.

    A plain Llama of this size let Muon's steps saturate its attention (0.2 to 0.5 nats of entropy
    above the first layer) and did not copy after 5 million tokens; this one does after 1.6.
    """
    torch.manual_seed(recipe.seed)
    part = recipe.model
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=part.hidden_size,
        num_hidden_layers=part.layers,
        num_attention_heads=part.heads,
        num_key_value_heads=part.heads,
        head_dim=part.hidden_size // part.heads,
        intermediate_size=part.ffn_size,
        max_position_embeddings=part.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]


class Optimizers(NamedTuple):
    muon: Muon
    adamw: torch.optim.AdamW

    def at_share(self, share: float, part: OptimizerPart) -> None:
        for optimizer, peak in ((self.muon, part.muon_lr), (self.adamw, part.adamw_lr)):
            for group in optimizer.param_groups:
                group["lr"] = peak * share

    def step(self) -> None:
        for optimizer in self:
            optimizer.step()
            optimizer.zero_grad()


def build_optimizers(model: Qwen3ForCausalLM, part: OptimizerPart) -> Optimizers:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return Optimizers(
        Muon(matrices, lr=part.muon_lr),
        torch.optim.AdamW(others, lr=part.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )


class Checkpoint(NamedTuple):
    """Everything that a resumed run needs beside the recipe: nothing else is random."""

    step: int
    cpu_s: float
    model: dict[str, Any]
    muon: dict[str, Any]
    adamw: dict[str, Any]

    @classmethod
    def of(cls, step: int, cpu_s: float, model: Qwen3ForCausalLM, optimizers: Optimizers) -> "Checkpoint":
        muon, adamw = optimizers
        return cls(step, cpu_s, model.state_dict(), muon.state_dict(), adamw.state_dict())

    def restore(self, model: Qwen3ForCausalLM, optimizers: Optimizers) -> None:
        model.load_state_dict(self.model)
        optimizers.muon.load_state_dict(self.muon)
        optimizers.adamw.load_state_dict(self.adamw)

    def save(self, path: Path) -> None:
        """Replace the old checkpoint in one move, so that a kill leaves one of the two whole."""
        torch.save(self._asdict(), path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        return cls(**torch.load(path, weights_only=True))


def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
    recipe = load_recipe(recipe_path)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    optimizers = build_optimizers(model, recipe.optimizer)
    checkpoint_path = out / "checkpoint.pt"
    first_step, cpu_before_s = 0, 0.0
    if checkpoint_path.exists():
        if not resume:
            raise FileExistsError(f"{out} holds a run already: add --resume or choose another --out")
        saved = Checkpoint.load(checkpoint_path)
        saved.restore(model, optimizers)
        first_step, cpu_before_s = saved.step, saved.cpu_s - time.process_time()
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    metrics = _Metrics(out / "metrics.jsonl", recipe, first_step)

    for step in range(first_step, recipe.steps):
        tokens, weights = batch(tokenizer, recipe.stage_at(step), recipe.seed, step)
        optimizers.at_share(learning_rate_share(step, recipe.steps, recipe.optimizer), recipe.optimizer)
        logits = model(input_ids=tokens).logits
        loss = weighted_loss(logits, tokens, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
        optimizers.step()
        with torch.no_grad():
            answers = weighted_loss(logits, tokens, (weights == 1.0).float())
        metrics.write(step, loss.item(), answers.item(), tokens.numel())
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            cpu_s = cpu_before_s + time.process_time()
            Checkpoint.of(step + 1, cpu_s, model, optimizers).save(checkpoint_path)

    export(model, tokenizer, out / "model")
    exact = exact_answers(out / "model", recipe.evaluation_items)
    metrics.write_exact(exact)
    facts = Facts(
        parameters=model.num_parameters(),
        tokens=recipe.tokens,
        steps=recipe.steps,
        cpu_s=Checkpoint.load(checkpoint_path).cpu_s,
        seed=recipe.seed,
        recipe=str(recipe_path),
        items=recipe.evaluation_items,
        exact=exact,
    )
    write_card(out / "model", facts)
    write_checksums(out / "model")


class _Metrics:
    """One JSON line a step; lines that a resumed run will write again are dropped first."""

    def __init__(self, path: Path, recipe: Recipe, first_step: int) -> None:
        kept = path.read_text().splitlines()[:first_step] if first_step else []
        path.write_text("".join(line + "\n" for line in kept))
        self._path = path
        self._recipe = recipe
        self._tokens = 0
        self._first_step = first_step
        self._begun = time.monotonic()

    def write(self, step: int, loss: float, answer_loss: float, tokens: int) -> None:
        self._tokens += tokens
        line = {"step": step, "loss": loss, "answer_loss": answer_loss, "tokens": tokens}
        with self._path.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        if step % 10 == 0:
            self._progress(step, loss, answer_loss)

    def write_exact(self, exact: dict[str, int]) -> None:
        line = {"exact": exact, "items": self._recipe.evaluation_items}
        with self._path.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def _progress(self, step: int, loss: float, answer_loss: float) -> None:
        elapsed_s = time.monotonic() - self._begun
        done = step + 1 - self._first_step
        left_s = elapsed_s / done * (self._recipe.steps - step - 1)
        print(
            f"step {step}/{self._recipe.steps}  loss {loss:.3f}  answers {answer_loss:.3f}  "
            f"{self._tokens / elapsed_s:,.0f} tokens/s  {left_s / 60:.0f} min left",
            flush=True,
        )


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the bfloat16 weights with everything an engine needs beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=DEFAULT_TEMPERATURE,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train a small chat model.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    train(arguments.recipe, arguments.out, resume=arguments.resume)


if __name__ == "__main__":
    main()
