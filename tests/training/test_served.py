"""What was trained is what is served: the real engine beside transformers, token for token, in float32."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.training.tuning import DEMO, REPOSITORY, sft_recipe
from training.exportable import why_not
from training.held_out import held_out
from training.sft import train

FAMILIES = ("greeting", "label", "handbook", "copying", "extraction", "one_passage", "tool_call", "react")
PROMPTS = 200
SOME = 4  # One in so many is asked of the base alone, too: enough to see that the adapter changes what is said.
TOKENS = 32


def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    items = [item for family in FAMILIES for item in held_out(family, PROMPTS // len(FAMILIES))]
    rendered: list[Any] = [
        tokenizer.apply_chat_template(item["messages"][:-1], tools=item.get("tools"), add_generation_prompt=True)
        for item in items
    ]
    return [list(one["input_ids"]) for one in rendered]


def greedy(model: Any, tokenizer: PreTrainedTokenizerFast, asked: list[list[int]]) -> list[list[int]]:
    """transformers' answers, the EOS included."""
    found: list[list[int]] = []
    model.generation_config.do_sample = False
    model.generation_config.temperature = None
    for start in range(0, len(asked), 50):
        read = tokenizer.pad({"input_ids": asked[start : start + 50]}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            written = model.generate(**read, max_new_tokens=TOKENS)
        for answer in written[:, read["input_ids"].size(1) :].tolist():
            ended = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else TOKENS
            found.append(answer[:ended])
    return found


def test_an_adapter_served_is_the_merged_model_served_is_transformers(tmp_path: Path) -> None:
    train(sft_recipe(tmp_path, "lora", merge=True, export="required"), tmp_path / "run", resume=False)
    adapter, merged = tmp_path / "run/model", tmp_path / "run/merged"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(adapter)
    asked = prompts(tokenizer)
    (tmp_path / "asked.json").write_text(
        json.dumps({"prompts": asked, "tokens": TOKENS, "models": [[str(DEMO), str(adapter)], [str(merged), None]]})
    )
    command = [sys.executable, "-m", "tests.training.offline_engine", str(tmp_path / "asked.json")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as engine:
        base = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
        before = greedy(base, tokenizer, asked[::SOME])
        here = greedy(peft.PeftModel.from_pretrained(base, adapter), tokenizer, asked)
        out, error = engine.communicate()
    assert engine.returncode == 0, error[-3000:]
    as_adapter, as_merged = json.loads(out.splitlines()[-1])

    assert why_not(adapter, DEMO) == why_not(merged) == []
    assert len(asked) == PROMPTS
    assert sum(one != other for one, other in zip(before, here[::SOME], strict=True)) > PROMPTS / SOME / 4
    assert as_adapter == here
    assert as_merged == here
