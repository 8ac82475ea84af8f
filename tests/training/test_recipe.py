"""Recipes that are refused, with file, line and remedy."""

import hashlib
from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveFloat

from penstock.errors import ConfigError
from training.recipe import Part, digests, load


class Rate(Part):
    peak: PositiveFloat
    warmup_steps: int = 0


class Small(Part):
    script: Literal["sft"]
    rate: Rate | None = None
    rates: tuple[Rate, ...] = ()


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def test_a_recipe_becomes_its_typed_tree(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, "script: sft\nrate: {peak: 1e-3}\n"), Small)
    assert recipe == Small(script="sft", rate=Rate(peak=0.001))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("script: sft\nrate:\n  peek: 1\n", "small.yaml:3: unknown key 'rate.peek', did you mean 'peak'?"),
        ("script: sft\nrates:\n- peak: 1\n- {peak: 0}\n", "small.yaml:4: rates.1.peak: Input should be greater than 0"),
        ("script: dpo\nrats: 1\n", "small.yaml:1: script: Input should be 'sft'"),
        ("script: dpo\nrats: 1\n", "small.yaml:2: unknown key 'rats', did you mean 'rates'?"),
        ("rate: {peak: 1}\n", "script: Field required"),
        ("script: sft\nscript: sft\n", "small.yaml:2: the key 'script' stands here a second time"),
        ("script: [sft\n", "is not YAML"),
        ("- sft\n", "expected `key: value` lines, found list"),
        ("", "expected `key: value` lines, found NoneType"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text), Small)
    assert told in refused.value.message


def test_a_recipe_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"script: \xff")
    for path in (tmp_path, tmp_path / "nowhere.yaml", tmp_path / "latin"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path, Small)


def test_data_have_digests_and_missing_data_a_message(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_bytes(b"{}\n")
    assert digests([data]) == {str(data): hashlib.sha256(b"{}\n").hexdigest()}
    with pytest.raises(ConfigError, match=r"b.jsonl cannot be read: No such file"):
        digests([tmp_path / "b.jsonl"])
