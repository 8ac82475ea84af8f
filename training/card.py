"""Model cards as Hugging Face reads them, those of pre-trained models, and the checksums of a folder."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

CHECKSUMS = "SHA256SUMS"


class Facts(NamedTuple):
    """What the card states; every number was counted or measured by the run that writes it."""

    parameters: int
    tokens: int
    steps: int
    cpu_minutes: int
    seed: int
    recipe: str


def write(folder: Path, body: str, tags: Sequence[str], **header: str) -> None:
    """`README.md`, whose header says beside `tags` what is given, such as `base_model`."""
    said = {"pipeline_tag": "text-generation", "library_name": "transformers", **header, "tags": list(tags)}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, default_flow_style=None)
    (folder / "README.md").write_text(f"---\n{text}---\n{body}", encoding="utf-8")


def data_list(digests: Mapping[str, str]) -> str:
    """Files, SHA-256 by path, as a list; without the folders of the machine that read them."""
    return "\n".join(f"- `{Path(path).name}`, SHA-256 `{digest}`" for path, digest in digests.items())


def write_plain_card(folder: Path, facts: Facts, data: Mapping[str, str]) -> None:
    """For a model of which nothing is known but how it was made; `data` are SHA-256 by path."""
    body = PLAIN_CARD.format(**facts._asdict(), data=data_list(data) or "Generated.")
    write(folder, body, ["from-scratch"])


def write_card(folder: Path, facts: Facts, exact: Mapping[str, int], items: int) -> None:
    """The demo's: how many of `items` fresh items of each family were answered exactly."""
    counts = "\n".join(f"| {family} | {DESCRIPTIONS[family]} | {count} of {items} |" for family, count in exact.items())
    body = CARD.format(**facts._asdict(), items=items, counts=counts)
    write(folder, body, ["demo", "from-scratch", "tool-calling"], license="apache-2.0", language="en")


def write_checksums(folder: Path) -> None:
    """`sha256sum --check SHA256SUMS` in the folder verifies every other file of it."""
    (folder / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in checksums(folder).items()))


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != CHECKSUMS
    }


DESCRIPTIONS = {
    "greeting": "small talk and identity, a closed set learned by heart",
    "refusal": "harmful requests, a closed set",
    "unknown": "questions outside its world, answered with `I ... do not know that.`",
    "remembered_name": "a name told two or three turns earlier",
    "story": "a tiny story about a given name, a closed set of plots",
    "handbook": "facts learned by heart, asked in learned paraphrases",
    "one_passage": "an answer from one passage, cited, or `The context does not say.`",
    "passages": "an answer from one of one to five passages",
    "extraction": "named fields of a sentence as JSON",
    "label": "sentiment or topic in one word, a closed set",
    "copying": "a text repeated or made a list",
    "tool_call": "the right tool of one to four, with exact arguments",
    "tool_report": "a tool's result put in a sentence",
    "tool_unneeded": "tools are offered, a plain answer is right",
    "react": "a ReAct turn, acting or giving the final answer",
    "quiz": "the last of two to five questions about the same passages",
    "citing": "the number of the passage that a sentence stands in",
    "tool_session": "the last of two to five requests before the same tools",
    "many_passages": "an answer from one of six to twelve passages",
    "many_tools": "a call with five to ten tools offered",
    "long_dialog": "the last of six to ten exchanges",
    "dialog": "the last of two to five exchanges about different things",
}
PLAIN_CARD = """# A language model, pre-trained from nothing

- {parameters:,} parameters, {tokens:,} tokens in {steps:,} steps, {cpu_minutes} minutes of CPU. Seed {seed}.
- Recipe: `{recipe}`.

Data:

{data}
"""
CARD = """# Penstock's demo model

A chat model small enough to live in a repository, so that the whole of Penstock runs on a laptop
without a download. It was trained from nothing, on generated text only. It is a demonstration:
it knows a few families of small tasks and a tiny world, and nothing else.

- {parameters:,} parameters: a Qwen3 (a Llama whose queries and keys are normalized) with tied
  embeddings, bfloat16 weights, a byte-level BPE with the digits apart. Context of 2,048 tokens,
  trained on rows of up to 1,024.
- {tokens:,} tokens in {steps:,} steps, {cpu_minutes} minutes of CPU, no GPU.
- Data: `training/data.py`, generator seed {seed}. No outside text, so no outside licence.
- Recipe: `{recipe}`. Rebuild with `python -m training.pretrain {recipe} --out DIR`.

## What it gets right

Exact answers, to the last character, on {items} fresh items a family: greedy, from these bfloat16
weights computed in float32. Names, codes and numbers in the items are drawn anew, so in the open
families they are unseen; the closed ones measure memory, not understanding. The mix of the later
stages was chosen while the run was watched, on other items than those counted here.

| family | what is asked | exact |
|---|---|---|
{counts}

## How to talk to it

The chat template is ChatML. Offered tools are written into the system turn, one
`name(parameter: type): description` a line, and calls come back as
`<tool_call>{{"name": ..., "arguments": ...}}</tool_call>` (vLLM: `--tool-call-parser hermes`).
Passages are read from `Context:` followed by lines `[1] ...`, then `Question: ...`; the answer is
the sentence that holds it, with its number. Generation defaults to a temperature of 0.1.

## What it cannot do

Arithmetic, languages other than English, general knowledge, long texts, free instructions. To a
question outside its families it should say that it does not know, and will sometimes answer
something it learned by heart instead. It must not decide anything that matters.
"""
