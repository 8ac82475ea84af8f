"""Serve parity: the greedy tokens that an engine serves are those of the training stack, and its prompts are too.

The engine answers with its tokens; the training stack (`evals/reference.py`) renders each conversation anew and reads
the answer. If every token is the likeliest after those before it, the greedy answers are equal. Where one is not, the
two tokens may be as good as equally likely, and then the order of a sum decides: a tie, which is counted and told.
Beyond that it is a difference.
"""

import asyncio
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.connection import Client
from engine.failures import from_answer
from evals.candidates import Candidate
from evals.report import Finding, failed, passed, skipped
from evals.tasks import Item
from penstock.errors import EngineError
from penstock.gates import Change, Parity

TIMEOUT_S = 600
AT_ONCE = 8
EXACT, ROUNDED = 0.001, 0.5
"""Nats that float32 differs by, and that dtypes which round to 8 bits may."""
# Greedy and nothing else, whatever the model's generation configuration says.
GREEDY: Mapping[str, Any] = {
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": True,
    "return_token_ids": True,
}


class NoReference(Exception):
    """The training stack cannot be asked here."""


@dataclass(frozen=True)
class Answer:
    """`prompt` and `tokens` are ids, as the engine has them; `logprobs` are of `tokens`."""

    item: Item
    prompt: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float]
    finish_reason: str

    @property
    def plain(self) -> dict[str, Any]:
        return {
            "id": self.item.id,
            "messages": list(self.item.messages),
            "tools": list(self.item.tools),
            "prompt": self.prompt,
            "tokens": self.tokens,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }


async def served(client: Client, model: str, items: Sequence[Item], tokens: int) -> list[Answer]:
    """Raises PenstockError where one is not answered; EngineError where the server tells no tokens."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(item: Item) -> Answer:
        async with turn:
            return await answer(client, model, item, tokens)

    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in asked]


async def answer(client: Client, model: str, item: Item, tokens: int) -> Answer:
    body: dict[str, Any] = {"model": model, "messages": list(item.messages), "max_tokens": tokens, **GREEDY}
    if item.tools:  # they stand in the prompt, but no grammar holds the answer to them
        body |= {"tools": list(item.tools), "tool_choice": "none"}
    said = await client.ask("POST", "/v1/chat/completions", orjson.dumps(body), timeout_s=TIMEOUT_S)
    if said.status != 200:
        raise from_answer(said.status, said.body)
    try:
        found = orjson.loads(said.body)
        choice = found["choices"][0]
        logprobs = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
        told = Answer(item, found["prompt_token_ids"], choice["token_ids"], logprobs, choice["finish_reason"])
        whole = len(told.prompt) > 0 and len(told.tokens) == len(logprobs)
    except (KeyError, IndexError, TypeError, ValueError):
        whole = False
    if not whole:
        raise EngineError("the server does not tell its tokens (`return_token_ids`, `logprobs`), as vLLM does")
    return told


async def reference(question: Mapping[str, Any]) -> dict[str, Any]:
    """What `evals/reference.py` answers. Raises NoReference with the reason."""
    answer: dict[str, Any] = json.loads(await ran("evals.reference", said=json.dumps(question).encode()))
    if "error" in answer:
        raise NoReference(answer["error"])
    return answer


async def dense_twin(quantized: Path, twin: Path) -> Path:
    """Raises NoReference with the reason."""
    await ran("engine.dense_twin", str(quantized), str(twin))
    return twin


async def ran(module: str, *words: str, said: bytes = b"") -> bytes:
    """What a module of ours prints, as a process. Raises NoReference if it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        out, errors = await process.communicate(said)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"]
        raise NoReference(explained(process.returncode, lines[-1]))
    return out


def explained(status: int | None, line: str) -> str:
    if "No module named" in line:
        return f"{line}: the training stack (torch, transformers) is not installed here; `make install` brings it"
    if status == -9:
        return "it was killed, most likely for want of memory: run the gate where the weights fit in float32"
    return line


async def end_of_turn(candidate: Candidate, changed: Sequence[Change] = ()) -> Finding:
    """Whether the engine ends an answer where the chat template ends a turn."""
    check = "end of turn"
    if candidate.base.template is None and candidate.version.template is None:
        return skipped(check, "there is no chat template", required=False)
    question = {"work": "ends", "speaks": str(candidate.spoken_to_by), "serves": str(candidate.base_folder)}
    try:
        found = await reference(question)
    except NoReference as error:
        return skipped(check, str(error))
    if found["end"] is None:
        return skipped(check, "the chat template ends turns without a special token", required=False)
    shown = f"{found['text']} ({found['end']})"
    if found["end"] in found["stops"]:
        return passed(check, f"the template's end of a turn, {shown}, ends an answer")
    return failed(
        check,
        f"the template ends a turn with {shown}, but generation_config.json ends answers at {found['stops']}: "
        f"the engine would go on talking; add {found['end']} to its eos_token_id",
    )


async def parity(
    candidate: Candidate, client: Client, model: str, items: Sequence[Item], asked: Parity, dtype: str | None
) -> Finding:
    """A quantized model is compared with its dense twin, whose weights are those that it stands for. `dtype`: in which
    the engine computes, None where that is not known."""
    answers = await served(client, model, items, asked.tokens)
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
            base = candidate.base_folder
            if candidate.base.kind == "quantized":
                base = await dense_twin(base, Path(scratch) / "twin")
            question = {
                "work": "parity",
                "base": str(base),
                "adapter": str(candidate.folder) if candidate.is_adapter else None,
                "speaks": str(candidate.spoken_to_by),
                "asked": [answer.plain for answer in answers],
            }
            found = await reference(question)
    except NoReference as error:
        return skipped("parity", str(error))
    return judged(found, asked, sum(len(answer.tokens) for answer in answers), dtype)


def judged(found: Mapping[str, Any], asked: Parity, tokens: int, dtype: str | None = None) -> Finding:
    """What the training stack has read: `items` with `rendered` (where the prompts part), or `differences`, `apart` and
    `end`. It reads what was served, so every place of an answer counts, also after a tie."""
    items, by = found["items"], found["by"]
    usual = EXACT if dtype in (None, "float32", "float") else ROUNDED
    tie = usual if asked.tie is None else asked.tie
    most_apart = usual if asked.logprobs is None else asked.logprobs
    rendered = [one for one in items if "rendered" in one]
    if rendered:
        return failed(
            "parity",
            f"{len(rendered)} of {len(items)} prompts are served otherwise than in training: {rendered[0]['id']} parts "
            f"at token {rendered[0]['rendered']}; the chat template or the tokenizer is another there",
            prompts=len(items),
            rendered=len(rendered),
        )
    differences = [(one["id"], *difference) for one in items for difference in one["differences"]]
    real = [one for one in differences if not one[4] <= tie]  # what is not a number is no tie
    different = len({one[0] for one in real})
    ends = [(one["id"], one["end"]) for one in items if one["end"]]
    apart = largest([one["apart"] for one in items])
    figures = {
        "prompts": len(items),
        "tokens": tokens,
        "different": different,
        "ties": len(differences) - len(real),
        "logprobs_apart": apart if math.isfinite(apart) else None,
        "by": by,
        "dtype": dtype,
        "most": {"tie": tie, "logprobs": most_apart},
    }
    served_in = f", served in {dtype}" if dtype not in (None, "float32") else ""
    if real:
        name, place, served, likeliest, nats = max(real, key=lambda one: one[4])
        return failed(
            "parity",
            f"{different} of {len(items)} answers differ from {by}: in {name} token {place} is {served} as served, "
            f"{likeliest} as trained, which is likelier by {nats:.4f} nats, more than {tie:g}{served_in}",
            **figures,
        )
    if ends:
        return failed(
            "parity", f"{len(ends)} of {len(items)} answers end elsewhere: {ends[0][0]} {ends[0][1]}", **figures
        )
    if not apart <= most_apart:
        return failed(
            "parity",
            f"the log-probabilities of equal tokens differ by {apart:.4f} nats, more than {most_apart:g}{served_in}",
            **figures,
        )
    ties = f", but for {figures['ties']} ties" if figures["ties"] else ""
    fewer = f"; the gate says {asked.prompts} prompts, and there are no more" if len(items) < asked.prompts else ""
    return passed(
        "parity",
        f"{len(items)} answers ({tokens} tokens) are those of {by}{ties}; log-probabilities within {apart:.1g} nats"
        f"{served_in}{fewer}",
        **figures,
    )


def largest(numbers: Sequence[float]) -> float:
    """Not a number if one of them is none, as of weights that are broken."""
    return math.nan if any(map(math.isnan, numbers)) else max(numbers, default=0.0)
