"""A gate asked of simulated servers: what passes, what stops a version, and what is not asked any more."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine import machine
from engine.sim import Fault, Simulator, expected, simulator
from engine.sim.asked import Model
from evals.candidates import Candidate
from evals.gate import Trial, judge
from evals.kept_runs import asked, kept
from evals.questions import Question, Questions
from evals.report import Report
from evals.seats import Elsewhere, Seats
from evals.tasks import Item, Task
from penstock.config import Engine
from penstock.gates import Gate, Latency, Parity
from registry.manifest import File, Manifest
from registry.versions import Version

ITEMS = 30
SAMPLING = {"temperature": 0, "max_tokens": 256}
LATENCY = Latency(requests=2, tokens=4, first_token=1000, per_token=1000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))


def version(number: int) -> Candidate:
    files = Manifest({"config.json": File(f"{number:064d}", 2)})
    made = Version(
        "m", number, "full", None, None, files.digest, files, None, None, None, {}, {}, None, 0.0, "me"
    )  # fmt: skip
    return Candidate(made, Path("none"), made, Path("none"))


def task(items: int = ITEMS) -> Task:
    """Right is what a simulator of the usual length says, whatever its name."""
    made = []
    for number in range(items):
        messages = [{"role": "user", "content": f"Question {number}?"}]
        body = {"model": "sim", "messages": messages, **SAMPLING}
        made.append(Item(str(number), messages, [expected(body, Model(), "/v1/chat/completions").text]))
    return Task("made", "verbatim", made, SAMPLING)


@dataclass
class Found:
    report: Report
    candidate: Simulator
    incumbent: Simulator

    @property
    def verdicts(self) -> dict[str, str]:
        return {finding.check: finding.verdict for finding in self.report.findings}

    def why(self, check: str) -> str:
        return next(finding.why for finding in self.report.findings if finding.check == check)


def judged(
    *faults: Fault,
    gate: Gate | None = None,
    candidate: dict[str, Any] | None = None,
    incumbent: dict[str, Any] | None = None,
    at_least: float | None = 0.8,
    why_not: Callable[[Candidate], Sequence[str]] = lambda _: [],
    new: bool = False,
    items: int = ITEMS,
    elsewhere: dict[str, Elsewhere] | None = None,
) -> Found:
    """m@2, with `faults`, beside m@1; each a simulator with what is given of it changed."""

    async def done() -> Found:
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(simulator(*faults, **{"model": "m@2", **(candidate or {})}))
            other = await stack.enter_async_context(simulator(**{"model": "m@1", **(incumbent or {})}))
            places = {"m@2": Elsewhere(one.url), "m@1": Elsewhere(other.url)} | (elsewhere or {})
            them = [version(2), version(1)]
            found = Seats(them, Engine(model="demo"), machine.detect(), places)
            asking = Question("task made", task(items), at_least, "interval", True)
            chosen = gate or Gate(parity=None, safety=None, latency=LATENCY)
            trial = Trial(
                chosen,
                "here",
                them[0],
                None if new else them[1],
                "m@production",
                Questions([asking], asking.task.items[:4]),
                found,
                why_not,
            )
            try:
                return Found(await judge(trial), one, other)
            finally:
                await found.close()

    return asyncio.run(done())


def test_an_equal_version_passes_and_every_check_says_so() -> None:
    found = judged()
    assert found.report.passed, found.report.reasons
    made = ["exportable", "serves", "task made", "regression made", "latency"]
    assert {check: found.verdicts[check] for check in made} == dict.fromkeys(made, "passed")
    assert "no difference shown" in found.why("regression made")
    said = found.report.described()
    assert (said["passed"], said["candidate"], said["incumbent"]) == (True, "m@2", "m@1")
    assert said["gate"]["parity"] is None
    assert not any("Question" in finding.why for finding in found.report.findings)  # no prompt gets into the audit log


def test_a_worse_version_is_stopped_by_threshold_and_regression() -> None:
    found = judged(candidate={"mean_tokens": 4})
    assert not found.report.passed
    stopped = {finding.check for finding in found.report.findings if finding.stops}
    assert stopped == {"task made", "regression made"}
    assert "below 0.8" in found.why("task made")
    assert "worse than what m@production points to" in found.why("regression made")
    assert [reason.partition(":")[0] for reason in found.report.reasons] == ["task made", "regression made"]


def test_a_regression_stops_a_version_without_any_threshold() -> None:
    found = judged(candidate={"mean_tokens": 4}, at_least=None)
    assert (found.verdicts["task made"], found.verdicts["regression made"]) == ("passed", "failed")


def test_a_threshold_needs_items_enough_to_be_sure() -> None:
    """30 of 30 are at least 0.886 with 95 %."""
    assert judged(at_least=0.88).verdicts["task made"] == "passed"
    found = judged(at_least=0.89)
    assert found.verdicts["task made"] == "failed"
    assert "the interval begins at 0.8865, below 0.89: 1.0000 of 30 items" in found.why("task made")


def test_a_new_alias_has_nothing_to_be_compared_with() -> None:
    found = judged(new=True)
    assert found.report.passed
    assert (found.verdicts["regression made"], found.verdicts["latency"]) == ("skipped", "skipped")
    assert not found.incumbent.requests


def test_items_too_few_to_show_a_regression_stop_it_before_anything_is_asked() -> None:
    found = judged(items=5, at_least=None)
    assert found.verdicts["regression made"] == "skipped"
    assert "at least 6 items are needed" in found.why("regression made")
    assert not found.report.passed
    assert not found.candidate.requests
    assert judged(items=6, at_least=None).verdicts["regression made"] == "passed"
    assert judged(items=5, at_least=None, new=True).report.passed


def test_what_the_files_tell_costs_no_engine() -> None:
    found = judged(why_not=lambda _: ["it is prefix tuning"])
    assert found.verdicts["exportable"] == "failed"
    assert found.report.reasons[0] == "exportable: it is prefix tuning"
    assert "since exportable has stopped it" in found.why("task made")
    assert not found.candidate.requests


def test_what_cannot_be_looked_at_does_not_pass() -> None:
    """The simulator tells no tokens, so nobody knows whether they are the right ones."""
    found = judged(gate=Gate(parity=Parity(prompts=2), safety=None, latency=LATENCY))
    assert found.verdicts["parity"] == "skipped"
    assert "does not tell its tokens" in found.why("parity")
    assert not found.report.passed
    assert found.verdicts["task made"] == "passed"


def test_a_version_that_nobody_serves_is_stopped() -> None:
    found = judged(elsewhere={"m@2": Elsewhere("http://127.0.0.1:9")})
    assert found.verdicts["serves"] == "failed"
    assert "127.0.0.1:9" in found.why("serves")
    assert found.verdicts["task made"] == found.verdicts["latency"] == "skipped"
    assert not found.report.passed


def test_the_only_model_of_a_server_is_not_taken_for_the_version() -> None:
    found = judged(candidate={"model": "another"})
    assert found.verdicts["serves"] == "failed"
    assert "serves another, and nothing as m@2: start it with --served-model-name m@2" in found.why("serves")
    assert not found.report.passed


def test_an_incumbent_that_cannot_be_asked_stops_it() -> None:
    found = judged(elsewhere={"m@1": Elsewhere("http://127.0.0.1:9")})
    assert found.verdicts["task made"] == "passed"
    assert found.verdicts["regression made"] == "skipped"
    assert "m@1 cannot be asked" in found.why("regression made")
    assert not found.report.passed


def test_items_without_an_answer_stop_it() -> None:
    found = judged(Fault("status", status=500, path="/v1/chat/completions", times=6), at_least=None)
    assert found.verdicts["task made"] == "failed"
    assert "of 30 items have no answer" in found.why("task made")


def test_a_run_is_kept_when_it_is_whole_and_for_the_same_engine_alone() -> None:
    """Keyed by weights, engine and task; the second time nobody is asked."""
    mine, whole = version(1), task(6)

    async def done() -> None:
        async with simulator(Fault("status", status=400, path="/v1/chat/completions", times=1), model="m@1") as sim:
            found = Seats([mine], Engine(model="demo"), machine.detect(), {"m@1": Elsewhere(sim.url)})
            seat = await found.of(mine)
            assert found.identity(mine) is None
            try:
                first = await asked(mine, seat, "vllm 1", whole, 2)
                assert first.result.errors == 1
                assert kept(mine, "vllm 1", whole) is None
                second = await asked(mine, seat, "vllm 1", whole, 2)
                assert second.result.errors == 0
                await asked(mine, seat, None, task(5), 2)
            finally:
                await found.close()
        again = kept(mine, "vllm 1", whole)
        assert again
        assert again.result == second.result
        assert kept(mine, "vllm 2", whole) is None
        assert kept(mine, None, whole) is None
        assert kept(mine, "vllm 1", replace(whole, sampling={"temperature": 1})) is None
        assert kept(version(2), "vllm 1", whole) is None

    asyncio.run(done())
