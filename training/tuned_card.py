"""The model card of what `sft` and `dpo` make: from what, by what, with which losses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.card import data_list, write
from training.run import METRICS
from training.tuning_recipe import Dpo, Sft


def write_card(folder: Path, recipe: Sft | Dpo, resolved: Mapping[str, Any], run: Path, reasons: Sequence[str]) -> None:
    """Into `README.md`, in Hugging Face's form; every figure is from the run's own metrics."""
    adapter = (folder / "adapter_config.json").is_file()
    lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    last = {name: value for name, value in lines[-1].items() if name not in ("step", "tokens", "lr", "grad_norm")}
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in last.items())
    unserved = "".join(f"\nvLLM does not serve it: {reason}.\n" for reason in reasons)
    body = CARD.format(
        base=resolved["base"],
        title={"sft": "Instruction tuning", "dpo": "Direct preference optimization"}[recipe.script],
        method=recipe.method,
        steps=resolved["steps"],
        tokens=sum(line.get("tokens", 0) for line in lines),
        precision=resolved["precision"],
        seed=recipe.seed,
        data=data_list(resolved["digests"]),
        figures=figures,
        unserved=unserved,
    )
    write(
        folder,
        body,
        [recipe.script, recipe.method],
        base_model=resolved["base"],
        base_model_relation="adapter" if adapter else "finetune",
        library_name="peft" if adapter else "transformers",
    )


CARD = """# {title} of {base}

- Method: `{method}`, {steps:,} steps, {tokens:,} tokens, computed in {precision}, seed {seed}.
- Answers are learned with the EOS that ends them; prompts are only read.
{unserved}
Data:

{data}

| last step | |
|---|---|
{figures}
"""
