"""From generated data to a live model and back, once around, with the real training, gate, gateway and engine."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loop import around

CHECKS = [
    "exportable",
    "template",
    "tokenizer",
    "end",
    "end of turn",
    "serves",
    "parity",
    "task held-out.jsonl",
    "safety",
    "regression held-out.jsonl",
    "regression safety",
    "latency",
]


def test_nothing_fails_while_versions_come_and_go_and_a_bad_one_is_stopped(tmp_path: Path) -> None:
    """By a gate that starts its own engine, and by one that asks the engine which serves."""
    report = asyncio.run(around(tmp_path / "loop"))

    assert (report["failed"], report["cut"]) == (0, 0), report
    answers = report["answers"]
    assert answers.keys() == {"helper@1", "helper@2", "helper@3"}
    assert all(text.endswith(".") for text in answers["helper@1"])
    assert all(text.endswith("!") for version in ("helper@2", "helper@3") for text in answers[version])
    assert (report["tried"]["failed"], report["tried"]["cut"]) == (0, 0), report
    assert "helper@4" in report["tried"]["answers"]

    good, bad = (report["gates"][name] for name in ("helper@3", "helper@4"))
    assert {check: said(good, check)[0] for check in CHECKS} == dict.fromkeys(CHECKS, "passed"), good
    failed = {check for check in CHECKS if said(bad, check)[0] != "passed"}
    assert failed - {"regression safety", "latency"} == {"task held-out.jsonl", "regression held-out.jsonl"}, bad
    for gate, place in ((good, "vllm"), (bad, "unix:")):
        assert said(gate, "serves")[1].startswith(f"it answers at {place}")
        parity = re.fullmatch(r"8 answers .* log-probabilities within (\S+) nats", said(gate, "parity")[1])
        assert parity
        assert float(parity[1]) < 1e-4
        assert said(gate, "latency")[1].endswith("(asked in turn)")
    assert "helper@production: from version 1, to version 3" in good[-1]
    assert said(bad, "regression held-out.jsonl")[1].startswith("worse than what helper@production points to")
    assert bad[-1] == "helper@4 is stopped by its gate; helper@production stays where it is"


def said(gate: Sequence[str], check: str) -> tuple[str, str]:
    """Verdict and reason, of a line such as `passed   parity                   8 answers ...`."""
    (line,) = (line for line in gate if line[9:].startswith(f"{check:24} "))
    return line[:8].rstrip(), line[10 + max(24, len(check)) :]
