"""Pairs of answers: understood, or refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.preferences import read

ASKED = {"role": "user", "content": "Who are you?"}
GOOD, BAD = {"role": "assistant", "content": "A model."}, {"role": "assistant", "content": "Nobody."}


@pytest.mark.parametrize("prompt", ["Who are you?", [ASKED], ASKED])
@pytest.mark.parametrize("chosen", ["A model.", GOOD, [GOOD]])
def test_a_pair_is_two_conversations_that_differ_in_their_answers(tmp_path: Path, prompt: Any, chosen: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": BAD}))
    [pair] = read(path).pairs

    assert pair.chosen == {"messages": [ASKED, GOOD]}
    assert pair.rejected == {"messages": [ASKED, BAD]}


def test_answers_of_the_prompt_are_only_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": [ASKED, BAD, ASKED], "chosen": GOOD, "rejected": BAD}))
    [pair] = read(path).pairs

    assert [turn.get("weight") for turn in pair.chosen["messages"]] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chosen": None}, "chosen not there"),
        ({"prompt": [ASKED, GOOD]}, "the prompt ends with an answer"),
        ({"chosen": [ASKED, GOOD]}, "chosen begins with the user's turn"),
        ({"chosen": BAD}, "chosen and rejected are the same"),
        ({"rejected": []}, "rejected is text, a message or a list of messages"),
        ({"rejected": {"role": "assistant", "content": ""}}, "turn 2: the assistant says nothing"),
    ],
)
def test_a_bad_pair_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    row = {"prompt": [ASKED], "chosen": GOOD, "rejected": BAD}
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n")
    found = read(path)

    assert len(found.pairs) == 1
    assert [(bad.line, why in bad.what) for bad in found.bad] == [(2, True)]
