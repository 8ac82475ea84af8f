"""From generated data to a live model and back, once around, with the real training, gate, gateway and engine."""

import asyncio
import os
from pathlib import Path

import pytest

from benchmarks.loop import around


@pytest.mark.skipif(
    "PENSTOCK_TEST_LOOP" not in os.environ, reason="PENSTOCK_TEST_LOOP=1: it takes five minutes and more"
)
def test_nothing_fails_while_versions_come_and_go_and_a_bad_one_is_stopped(tmp_path: Path) -> None:
    report = asyncio.run(around(tmp_path / "loop"))

    assert (report["failed"], report["cut"]) == (0, 0), report
    answers = report["answers"]
    assert answers.keys() == {"helper@1", "helper@2", "helper@3"}
    assert not any(text.endswith("!") for text in answers["helper@1"])
    assert all(text.endswith("!") for version in ("helper@2", "helper@3") for text in answers[version])
    *why, verdict = report["stopped"]
    assert any(line.startswith("failed   regression held-out.jsonl worse than") for line in why)
    assert verdict == "helper@4 is stopped by its gate; helper@production stays where it is"
