"""Write generated conversations, or preferences, as JSON lines for `sft` and `dpo`:

    python -m training.generate passages=3,tool_call --items 2000 --seed 1 --out rows.jsonl
    python -m training.generate recipes/demo/pretrain.yaml --items 2000 --seed 1 --out rows.jsonl
    python -m training.generate passages,refusal --pairs --items 500 --seed 1 --out pairs.jsonl

A recipe gives the families of its last stage, with their weights. The same arguments write the same
bytes on every machine; what evaluation asks is drawn by another seed and never written. The digest
that is printed says which data a model has seen.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import Any

import yaml

from penstock.errors import BadRequest, Conflict, PenstockError
from training.data import ADAPTED, FAMILIES, conversation
from training.families.mistakes import MISTAKES, pair

Row = Mapping[str, Any]


def rows(mix: Mapping[str, float], items: int, seed: int, *, pairs: bool = False) -> Iterator[Row]:
    """`items` conversations, `{"messages": ..., "tools": ...}`, of families drawn by their weights.

    With `pairs` each is `{"prompt", "chosen", "rejected", "tools"}`, the rejected answer a plausible error.
    """
    for index in range(items):
        [family] = Random(f"rows/{seed}/{index}").choices(list(mix), list(mix.values()))
        item = conversation(family, f"rows/{seed}", index)
        yield pair(Random(f"{family}/mistake/{seed}/{index}"), family, item) if pairs else item


def mix_of(source: str, *, pairs: bool = False) -> dict[str, float]:
    """`passages=3,tool_call` -> {"passages": 3.0, "tool_call": 1.0}; or a recipe's families. Raises BadRequest."""
    mix = _of_recipe(Path(source), pairs) if source.endswith((".yaml", ".yml")) else _of_words(source)
    known = MISTAKES if pairs else FAMILIES | ADAPTED
    for family, weight in mix.items():
        if family not in known:
            near = get_close_matches(family, known, 1)
            what = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise BadRequest(f"no family {family!r}{' with mistakes' if pairs else ''}: {what}")
        if not 0 <= weight < float("inf"):
            raise BadRequest(f"the weight of {family} is {weight}: give a number from 0")
    if not sum(mix.values()):
        raise BadRequest(f"{source!r} names no family: there are {', '.join(known)}")
    return mix


def write(rows: Iterator[Row], out: Path) -> str:
    """Write the rows in one move and return the file's SHA-256. Raises Conflict rather than replace other rows."""
    data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    if out.exists() and out.read_bytes() != data:
        raise Conflict(f"{out} holds other rows: choose another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".new")
    fresh.write_bytes(data)
    fresh.replace(out)
    return hashlib.sha256(data).hexdigest()


def _of_words(source: str) -> dict[str, float]:
    mix = {}
    for part in filter(None, source.split(",")):
        family, _, weight = part.partition("=")
        try:
            mix[family.strip()] = float(weight or 1)
        except ValueError as error:
            raise BadRequest(f"{part!r}: write FAMILY or FAMILY=WEIGHT, as in passages=3") from error
    return mix


def _of_recipe(path: Path, pairs: bool) -> dict[str, float]:
    """Of a recipe for pretraining the families of the last stage; for pairs those that have mistakes."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        families = {str(name): float(weight) for name, weight in recipe["stages"][-1]["families"].items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(f"{path} has no stages with families: give a recipe of `pretrain`, or families") from error
    return {name: weight for name, weight in families.items() if not pairs or name in MISTAKES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write generated rows for sft, or pairs for dpo.")
    parser.add_argument("source", help="families, as passages=3,tool_call, or a recipe of pretrain")
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", action="store_true", help="preferences instead of conversations")
    arguments = parser.parse_args()
    if arguments.items < 1:
        parser.error("--items is at least 1")
    try:
        mix = mix_of(arguments.source, pairs=arguments.pairs)
        digest = write(rows(mix, arguments.items, arguments.seed, pairs=arguments.pairs), arguments.out)
    except PenstockError as error:
        sys.exit(f"penstock: {error.message}")
    print(f"{arguments.items} rows in {arguments.out}, sha256:{digest}")


if __name__ == "__main__":
    main()
