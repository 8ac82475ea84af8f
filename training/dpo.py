"""Teach a model which of two answers is preferred, on a laptop:

    python -m training.dpo recipes/dpo.yaml --out runs/dpo [--resume]

Direct preference optimization (Rafailov et al. 2023). Reads top to bottom: loss, recipe, data, reference, loop, result.
The reference is what the run begins from, the base or an adapter that it goes on with, asked once for the
log-probabilities of both answers before anything is trained. The run folder is that of training/run.py.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from training.base import computing, device
from training.examples import Tokens, pairs
from training.recipe import load
from training.rows import batch, endless, parts
from training.run import Run, command
from training.schedule import share
from training.tuned import begin, finish, prepared, restore, trained
from training.tuning_recipe import Dpo


class Preference(NamedTuple):
    """Of each pair, (pairs,): the loss, and the rewards `beta * log(policy / reference)` of both answers."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor

    @property
    def margins(self) -> Tensor:
        return self.chosen_rewards - self.rejected_rewards


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    smoothing: float,
) -> Preference:
    """`-log sigmoid(margin)`, equation 7 of the paper, from log-probabilities of whole answers, (pairs,) each.

    With `smoothing` the label is thought wrong at that rate, and the loss is the expected one: conservative DPO
    (Mitchell 2023).
    """
    chosen_rewards = beta * (chosen - reference_chosen)
    rejected_rewards = beta * (rejected - reference_rejected)
    margins = chosen_rewards - rejected_rewards
    losses = -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)
    return Preference(losses, chosen_rewards, rejected_rewards)


def log_probabilities(logits: Tensor, tokens: Tensor, learned: Tensor, *, normalized: bool = False) -> Tensor:
    """Of the tokens that are learned, in nats, summed by row: (rows, length, vocabulary) -> (rows,).

    `normalized` takes the mean instead, so that a long answer weighs no more than a short one (Lambert et al. 2024,
    Tulu 3, section 5).
    """
    said = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    following = learned[:, 1:]
    total = (said * following).sum(-1)
    return total / following.sum(-1) if normalized else total


def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
    recipe = load(recipe_path, Dpo)
    begun = begin(recipe, out, resume=resume)
    found = pairs(begun.tokenizer, recipe.data, recipe.length, recipe.bad_rows)
    steps = recipe.steps or math.ceil((recipe.epochs or 1) * len(found) / recipe.rows)
    run = Run(out, begun.resolved(recipe, steps), steps, resume)
    if run.finished:
        return

    model = prepared(recipe, begun.base, begun.precision, begun.start)
    forward = Forward(model, begun.precision, begun.padding, recipe.length_normalized)
    order = [one for row in islice(drawn(found, recipe.seed), steps * recipe.rows) for one in row]
    reference = reference_of(forward, found, sorted(set(order)), recipe.rows_at_once or recipe.rows)
    part, weights = recipe.optimizer, trained(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=part.lr, weight_decay=part.weight_decay)
    if run.saved:
        restore(model, run.saved["trained"])
        optimizer.load_state_dict(run.saved["optimizer"])

    for step in range(run.first_step, steps):
        rate = part.lr * share(step, steps, part.warmup_steps, part.decay, part.final_share)
        optimizer.param_groups[0]["lr"] = rate
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout is a function of the step, too
        model.train()
        picked = order[step * recipe.rows : (step + 1) * recipe.rows]
        told: list[Preference] = []
        for some in parts(picked, recipe.rows_at_once):
            chosen, rejected = forward.answers([found[i] for i in some])
            before = reference[list(some)].to(chosen.device)  # (pairs, 2)
            preference = dpo_loss(
                chosen, rejected, before[:, 0], before[:, 1], beta=recipe.beta, smoothing=recipe.label_smoothing
            )
            (preference.losses.sum() / len(picked)).backward()  # type: ignore[no-untyped-call]
            told.append(Preference(*(one.detach() for one in preference)))
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), part.clip).item()
        optimizer.step()
        optimizer.zero_grad()

        margins = torch.cat([one.margins for one in told])
        run.log(
            step,
            tokens=sum(len(one.tokens) for i in picked for one in found[i]),
            loss=torch.cat([one.losses for one in told]).mean().item(),
            margin=margins.mean().item(),
            accuracy=(margins > 0).float().mean().item(),
            chosen_reward=torch.cat([one.chosen_rewards for one in told]).mean().item(),
            rejected_reward=torch.cat([one.rejected_rewards for one in told]).mean().item(),
            grad_norm=norm,
            lr=rate,
        )
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
            now = {name: weight.detach() for name, weight in weights.items()}
            run.checkpoint(step + 1, {"trained": now, "optimizer": optimizer.state_dict()})

    finish(run, model, begun, recipe)


def drawn(found: Sequence[Tokens], seed: int) -> Iterator[list[int]]:
    """Pairs by their numbers, epoch after epoch."""
    return endless([len(one.chosen.tokens) for one in found], None, str(seed))


class Forward(NamedTuple):
    """Both answers of pairs through a model, in the run's precision."""

    model: nn.Module
    precision: str
    padding: int
    normalized: bool

    def answers(self, some: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """The log-probabilities of the preferred answers and of the others, (pairs,) each, from one pass."""
        rows = [[one.chosen] for one in some] + [[one.rejected] for one in some]
        part = batch(rows, self.padding, packed=False).to(device())
        with computing(self.precision):
            logits = self.model(
                input_ids=part.tokens, attention_mask=part.mask, position_ids=part.positions, use_cache=False
            ).logits
        said = log_probabilities(logits, part.tokens, part.learned, normalized=self.normalized)
        return said[: len(some)], said[len(some) :]


@torch.no_grad()
def reference_of(forward: Forward, found: Sequence[Tokens], asked: Sequence[int], at_once: int) -> Tensor:
    """What the reference makes of both answers of the pairs asked for, (pairs, 2); not a number for others.

    The model is still what the run begins from: nothing is trained yet, and a fresh LoRA adds nothing.
    """
    forward.model.train(False)
    said = torch.full((len(found), 2), math.nan)
    for some in parts(asked, at_once):
        said[list(some)] = torch.stack(forward.answers([found[i] for i in some]), -1).cpu()
    return said


if __name__ == "__main__":
    command(train, "Teach a model which of two answers is preferred.")
