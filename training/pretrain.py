"""Train a language model from nothing:

    penstock train recipes/demo/pretrain.yaml --out runs/demo [--resume]

which is `python -m training.pretrain` with the same words. Reads top to bottom: loss, learning rate, optimizers, loop,
result. Every batch is a function of the seed and the step, so a killed run continues with `--resume` on the very loss
curve it left (`training/run.py`). The result is a directory that transformers and vLLM load.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from training import corpus, validation
from training.ahead import ahead, makers_for
from training.card import Facts, write_card, write_checksums, write_plain_card
from training.corpus import Corpus, Document
from training.evaluate_demo import exact_answers
from training.hardware import resolved
from training.model import Model, build, export, looks_back, positions_within
from training.muon import Muon
from training.packing import Batch, apart, batch
from training.pretrain_recipe import OptimizerPart, Recipe, Stage, load_recipe
from training.run import Run, command
from training.tokenizer import tokenizer_of


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token. (B, T, V), (B, T) -> (B, T - 1), in float32."""
    losses = cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(tokens.size(0), -1)


def weighted_loss(losses: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """The mean of `token_losses`, each by the weight of the token that it is about.

    `total` is the sum of the weights of a whole batch of which this is a part, so that the parts' losses, and their
    gradients, add up to those of the whole.
    """
    following = weights[:, 1:]
    return (losses * following).sum() / (following.sum() if total is None else total)


def learning_rate_share(step: int, steps: int, optimizer: OptimizerPart) -> float:
    """The share of the peak learning rate at a step: warm-up, plateau, linear decay."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    left = (steps - step) / (steps * optimizer.decay_share)
    return min(1.0, optimizer.final_share + (1 - optimizer.final_share) * left)


class Optimizers(NamedTuple):
    """Each with its peak learning rate."""

    each: Sequence[tuple[torch.optim.Optimizer, float]]

    @classmethod
    def of(cls, model: torch.nn.Module, part: OptimizerPart) -> "Optimizers":
        """Muon for the matrices of the layers if it has a rate; AdamW for all else: embeddings, norms, biases."""
        embeddings = {name for name, _ in model.named_parameters() if any(word in name for word in EMBEDDINGS)}
        inner = [p for name, p in model.named_parameters() if p.ndim == 2 and name not in embeddings]
        outer = [p for name, p in model.named_parameters() if p.ndim == 2 and name in embeddings]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        by_adamw = outer if part.muon_lr else outer + inner
        groups = [{"params": by_adamw, "weight_decay": part.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=part.adamw_lr, betas=(0.9, 0.95), fused=True)
        muon = [(Muon(inner, lr=part.muon_lr), part.muon_lr)] if part.muon_lr else []
        return cls([*muon, (adamw, part.adamw_lr)])

    def at_share(self, share: float) -> None:
        for optimizer, peak in self.each:
            for group in optimizer.param_groups:
                group["lr"] = peak * share

    def step(self) -> None:
        for optimizer, _ in self.each:
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self.each]

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        for (optimizer, _), state in zip(self.each, saved, strict=True):
            optimizer.load_state_dict(state)


EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "wpe")


class Losses(NamedTuple):
    """A step's, over all of its rows: of every weighed token, and of the answers alone."""

    loss: float
    answer_loss: float


def in_precision(recipe: Recipe) -> AbstractContextManager[Any]:
    """Matrices are multiplied in bfloat16 where the recipe says so; weights, norms, sums and losses stay float32."""
    return torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def learn(model: Model, rows: Batch, recipe: Recipe, optimizers: Optimizers) -> Losses:
    """One step: forward and backward over each part of the rows, then the optimizers, together."""
    total = rows.weights[:, 1:].sum()
    answers = (rows.weights >= 1.0).float()
    loss = answer_loss = torch.zeros((), device=total.device)
    for part, is_answer in zip(rows.parts(recipe.accumulation), answers.chunk(recipe.accumulation), strict=True):
        with in_precision(recipe):
            logits = logits_of(model, part, separate=recipe.separate_documents)
        losses = token_losses(logits, part.tokens)
        share = weighted_loss(losses, part.weights, total)
        share.backward()  # type: ignore[no-untyped-call]
        loss = loss + share.detach()
        answer_loss = answer_loss + weighted_loss(losses.detach(), is_answer, answers[:, 1:].sum().clamp(min=1))
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
    optimizers.step()
    return Losses(loss.item(), answer_loss.item())


def logits_of(model: Model, rows: Batch, *, separate: bool) -> Tensor:
    if not separate:
        return model(rows.tokens)  # type: ignore[no-any-return]
    return model(rows.tokens, positions_within(rows.documents), looks_back(rows.documents))  # type: ignore[no-any-return]


def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
    recipe = resolved(load_recipe(recipe_path), out, resume)
    run = Run(out, recipe.model_dump(mode="json"), recipe.steps, resume)
    if run.finished:
        return
    torch.set_num_threads(recipe.threads)
    tokenizer = tokenizer_of(recipe)
    documents = {path: corpus.documents(path, tokenizer) for path in recipe.files}
    corpora = [corpus_of(stage, documents, recipe) for stage in recipe.stages]
    held_out = validation.texts(recipe.validation, tokenizer) if recipe.validation else []
    steps = range(run.first_step, recipe.steps)
    makers = makers_for(recipe.device, recipe.threads)
    with ahead(partial(rows_of, recipe, tokenizer, corpora), steps, makers, run.add_cpu) as rows:
        model = build(recipe.model, len(tokenizer), recipe.seed, checkpointed=recipe.gradient_checkpointing)
        model.to(recipe.device)
        optimizers = Optimizers.of(model, recipe.optimizer)
        if run.saved:
            model.load_state_dict(run.saved["model"])
            optimizers.restore(run.saved["optimizers"])

        for step in steps:
            advance(run, step, recipe, next(rows), held_out, model, optimizers)

    with run.writing_model() as folder:
        export(model, recipe.model, tokenizer, folder, temperature=recipe.temperature)
        facts = Facts(
            parameters=sum(weight.numel() for weight in model.parameters()),
            tokens=recipe.tokens,
            steps=recipe.steps,
            cpu_minutes=round(run.cpu_s / 60),
            seed=recipe.seed,
            recipe=str(recipe_path),
        )
        if recipe.evaluation_items:
            exact = exact_answers(folder, recipe.evaluation_items, recipe.families)
            run.log(recipe.steps, exact=exact, items=recipe.evaluation_items)
            write_card(folder, facts, exact, recipe.evaluation_items)
        else:
            write_plain_card(folder, facts, recipe.digests)
        write_checksums(folder)


def rows_of(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, corpora: Sequence[Corpus], step: int) -> Batch:
    """A corpus for each stage."""
    stage = recipe.stage_at(step)
    rows = batch(tokenizer, stage, recipe.seed, step, corpora[recipe.stages.index(stage)])
    return apart(rows) if recipe.separate_documents else rows


def advance(
    run: Run,
    step: int,
    recipe: Recipe,
    rows: Batch,
    held_out: Sequence[validation.Text],
    model: Model,
    optimizers: Optimizers,
) -> None:
    """One step with all that belongs to it: its line, and when it is time validation and a checkpoint."""
    optimizers.at_share(learning_rate_share(step, recipe.steps, recipe.optimizer))
    losses = learn(model, rows.to(recipe.device), recipe, optimizers)
    stage = recipe.stage_at(step)
    is_last = step + 1 == recipe.steps
    figures: dict[str, float] = {}
    if recipe.validation and ((step + 1) % recipe.validation.every == 0 or is_last):
        with in_precision(recipe):
            figures = validation.validate(model, held_out, stage.length, stage.rows, recipe.device).figures
    run.log(step, tokens=rows.tokens.numel(), **losses._asdict(), **figures)
    if (step + 1) % recipe.checkpoint_every == 0 or is_last:
        run.checkpoint(step + 1, {"model": model.state_dict(), "optimizers": optimizers.state()})


def corpus_of(stage: Stage, documents: Mapping[Path, Sequence[Document]], recipe: Recipe) -> Corpus:
    return {path: corpus.fitted(path, documents[path], stage.length, recipe.too_long) for path in stage.files}


if __name__ == "__main__":
    command(train, "Train a language model from nothing.")
