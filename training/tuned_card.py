"""The model card of what `sft` and `dpo` make: from what, by what, with which losses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.run import METRICS
from training.tuning_recipe import Dpo, Sft


def write_card(folder: Path, recipe: Sft | Dpo, resolved: Mapping[str, Any], run: Path, reasons: Sequence[str]) -> None:
    """Into `README.md`, in Hugging Face's form; every figure is from the run's own metrics."""
    adapter = (folder / "adapter_config.json").is_file()
    lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    last = {name: value for name, value in lines[-1].items() if name not in ("step", "tokens", "lr", "grad_norm")}
    data = "\n".join(f"- `{Path(name).name}`, sha256 `{digest}`" for name, digest in resolved["digests"].items())
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in last.items())
    unserved = "".join(f"\nvLLM does not serve it: {reason}.\n" for reason in reasons)
    (folder / "README.md").write_text(
        CARD.format(
            base=json.dumps(resolved["base"]),
            relation="adapter" if adapter else "finetune",
            library="peft" if adapter else "transformers",
            script=recipe.script,
            title={"sft": "Instruction tuning", "dpo": "Direct preference optimization"}[recipe.script],
            method=recipe.method,
            steps=resolved["steps"],
            tokens=sum(line.get("tokens", 0) for line in lines),
            precision=resolved["precision"],
            seed=recipe.seed,
            data=data,
            figures=figures,
            unserved=unserved,
        ),
        encoding="utf-8",
    )


CARD = """---
base_model: {base}
base_model_relation: {relation}
library_name: {library}
pipeline_tag: text-generation
tags: [{script}, {method}]
---
# {title} of {base}

- Method: `{method}`, {steps:,} steps, {tokens:,} tokens, computed in {precision}, seed {seed}.
- Answers are learned with the EOS that ends them; prompts are only read.
{unserved}
Data:

{data}

| last step | |
|---|---|
{figures}
"""
