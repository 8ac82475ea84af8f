"""Ask an exported demo model fresh items of every family and count the exact answers:

    python -m training.evaluate_demo recipes/demo/model --items 100

Answers are greedy, from the exported weights computed in float32. An answer counts only when it
equals the expected turn to the last character, EOS included.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from evals.metrics import verbatim
from training.data import FAMILIES
from training.families.words import Conversation, Message
from training.held_out import LONGEST_ANSWER, held_out

BATCH = 50


class Asked(NamedTuple):
    """What the model reads, what it should write, and what it wrote."""

    prompt: str
    expected: str
    answer: str

    @property
    def exact(self) -> bool:
        return bool(verbatim(self.answer, [self.expected]))


def exact_answers(folder: Path, items: int, families: Iterable[str] = FAMILIES) -> dict[str, int]:
    """Exact answers of each family, out of `items` that no training seed can draw."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return {family: sum(asked.exact for asked in ask(model, tokenizer, held_out(family, items))) for family in families}


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Conversation]) -> list[Asked]:
    """Let the model write the last turn of each item."""
    parts = [_prompt_and_answer(tokenizer, item) for item in items]
    answers: list[str] = []
    for start in range(0, len(parts), BATCH):
        prompts = [prompt for prompt, _ in parts[start : start + BATCH]]
        answers += greedy_answers(model, tokenizer, prompts)
    return [Asked(prompt, expected, answer) for (prompt, expected), answer in zip(parts, answers, strict=True)]


def greedy_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Continuations up to and including the EOS, or as long as `LONGEST_ANSWER` without one."""
    read = tokenizer(
        list(prompts),
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.inference_mode():
        written = model.generate(  # type: ignore[operator]
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            temperature=None,
        )
    fresh = written[:, read["input_ids"].size(1) :]
    return [text.split(tokenizer.pad_token)[0] for text in tokenizer.batch_decode(fresh)]


def _prompt_and_answer(tokenizer: PreTrainedTokenizerFast, item: Conversation) -> tuple[str, str]:
    """The conversation as text, cut where its last turn begins."""
    *asked, _ = item["messages"]
    whole = _rendered(tokenizer, item["messages"], item.get("tools"))
    prompt = _rendered(tokenizer, asked, item.get("tools"), add_generation_prompt=True)
    return prompt, whole.removeprefix(prompt).removesuffix("\n")


def _rendered(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[Message],
    tools: list[Any] | None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return cast("str", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count exact answers of a demo model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=100)
    arguments = parser.parse_args()
    print(json.dumps(exact_answers(arguments.folder, arguments.items), indent=2))


if __name__ == "__main__":
    main()
