"""Teach a model the assistant's turns of conversations, on a laptop:

    python -m training.sft recipes/sft-lora.yaml --out runs/sft [--resume]

Reads top to bottom: loss, recipe, data, model, loop, result. The whole model is trained, or an adapter beside it: LoRA
(Hu et al. 2021), DoRA (Liu et al. 2024), QLoRA (Dettmers et al. 2023), prefix tuning (Li and Liang 2021) or prompt
tuning (Lester et al. 2021). The run folder is that of training/run.py; its `model/` is the whole model or the adapter,
each with tokenizer and chat template, and `merged/` the whole of both, if the recipe says `merge`.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from penstock.errors import BadRequest
from training.base import computing, device
from training.examples import documents
from training.masking import Document
from training.recipe import load
from training.rows import Batch, batch, endless, one_epoch, parts
from training.run import Run, command
from training.schedule import share
from training.tuned import begin, finish, prepared, restore, trained
from training.tuning_recipe import VIRTUAL, Sft


def answer_loss(logits: Tensor, tokens: Tensor, learned: Tensor) -> Tensor:
    """The cross-entropy of the tokens that are learned, summed, in nats.

    `logits` are (rows, length, vocabulary), `tokens` and `learned` (rows, length); position i predicts token i + 1.
    """
    following = learned[:, 1:]
    return cross_entropy(logits[:, :-1][following].float(), tokens[:, 1:][following], reduction="sum")


def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
    recipe = load(recipe_path, Sft)
    begun = begin(recipe, out, resume=resume)

    found = documents(begun.tokenizer, recipe.data, recipe.length, recipe.bad_rows)
    learning, held_out = split(found, recipe.held_out, recipe.seed)
    lengths = [len(one.tokens) for one in learning]
    room = recipe.length if recipe.packing else None
    an_epoch = sum(1 for _ in one_epoch(lengths, room, f"{recipe.seed}/0"))
    steps = recipe.steps or math.ceil((recipe.epochs or 1) * an_epoch / recipe.rows)
    run = Run(out, begun.resolved(recipe, steps), steps, resume)
    if run.finished:
        return
    print(f"{len(learning)} documents, {sum(lengths)} tokens, {an_epoch} rows an epoch, {steps} steps", flush=True)

    model = prepared(recipe, begun.base, begun.precision, begun.start)
    forward = Forward(model, begun.precision, begun.padding, recipe.method in VIRTUAL)
    if recipe.packing:
        check_packing(forward, learning[0], learning[-1])
    part, weights = recipe.optimizer, trained(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=part.lr, weight_decay=part.weight_decay)
    if run.saved:
        restore(model, run.saved["trained"])
        optimizer.load_state_dict(run.saved["optimizer"])

    rows = islice(endless(lengths, room, str(recipe.seed)), run.first_step * recipe.rows, None)
    for step in range(run.first_step, steps):
        rate = part.lr * share(step, steps, part.warmup_steps, part.decay, part.final_share)
        optimizer.param_groups[0]["lr"] = rate
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout is a function of the step, too
        model.train()
        picked = [[learning[i] for i in row] for row in islice(rows, recipe.rows)]
        answers = sum(sum(one.learned[1:]) for row in picked for one in row)
        loss = 0.0
        for some in parts(picked, recipe.rows_at_once):
            nats = forward.loss(some, packed=recipe.packing) / answers
            nats.backward()  # type: ignore[no-untyped-call]
            loss += nats.item()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), part.clip).item()
        optimizer.step()
        optimizer.zero_grad()

        more = {"grad_norm": norm, "lr": rate}
        if held_out and ((step + 1) % (recipe.evaluate_every or steps) == 0 or step + 1 == steps):
            more["held_out_loss"] = mean_loss(forward, held_out, recipe.rows_at_once or recipe.rows)
        run.log(step, tokens=sum(len(one.tokens) for row in picked for one in row), loss=loss, **more)
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
            now = {name: weight.detach() for name, weight in weights.items()}
            run.checkpoint(step + 1, {"trained": now, "optimizer": optimizer.state_dict()})

    finish(run, model, begun, recipe)


class Forward(NamedTuple):
    """Rows of documents through a model, in the run's precision; `virtual` are tokens of its own before a row."""

    model: nn.Module
    precision: str
    padding: int
    virtual: bool = False

    def loss(self, rows: Sequence[Sequence[Document]], *, packed: bool) -> Tensor:
        """The nats of all that is learned in the rows."""
        some = batch(rows, self.padding, packed=packed).to(device())
        return answer_loss(self.logits(some), some.tokens, some.learned)

    def logits(self, some: Batch) -> Tensor:
        """(rows, length, vocabulary), without what virtual tokens predict; a model that has these counts positions."""
        own = {} if self.virtual else {"position_ids": some.positions, "use_cache": False}
        with computing(self.precision):
            logits: Tensor = self.model(input_ids=some.tokens, attention_mask=some.mask, **own).logits
        return logits[:, -some.tokens.size(1) :]


def split(found: list[Document], held_out: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Those to learn from, and a share of all that is only measured. Raises BadRequest if either would be empty."""
    if not held_out:
        return found, []
    order = list(range(len(found)))
    Random(f"{seed}/held out").shuffle(order)
    apart = set(order[: round(len(found) * held_out)])
    if not 0 < len(apart) < len(found):
        raise BadRequest(f"held_out: {held_out} of {len(found)} rows leaves nothing on one of the sides")
    return [one for i, one in enumerate(found) if i not in apart], [found[i] for i in sorted(apart)]


@torch.no_grad()
def mean_loss(forward: Forward, found: Sequence[Document], at_once: int) -> float:
    """Nats a learned token, over all documents, each alone in its row."""
    forward.model.train(False)
    answers = sum(sum(one.learned[1:]) for one in found)
    return sum(forward.loss(some, packed=False).item() for some in parts([[one] for one in found], at_once)) / answers


@torch.no_grad()
def check_packing(forward: Forward, first: Document, second: Document) -> None:
    """Raises BadRequest for a model in which a document in a packed row sees the one before it."""
    forward.model.train(False)
    alone, packed = (batch(rows, 0, packed=True).to(device()) for rows in ([[second]], [[first, second]]))
    separate, together = (forward.logits(one).float().log_softmax(-1) for one in (alone, packed))
    apart = (separate[0] - together[0, -separate.size(1) :]).abs().mean().item()
    if apart > (0.05 if forward.precision == "bfloat16" else 1e-3):
        raise BadRequest(
            f"in a packed row this model reads across documents ({apart:.2g} nats a token): say `packing: false`"
        )


if __name__ == "__main__":
    command(train, "Teach a model the assistant's turns of conversations.")
