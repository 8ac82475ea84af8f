"""The gate: what a version must show before an alias points to it, beside the version that it points to now.

The cheap checks come first, and where one of them stops the version nothing is started. A check that must be made and
cannot be made stops it, too: nothing passes because nobody looked.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from engine.failures import from_answer
from evals import latency, parity
from evals.candidates import Candidate
from evals.compare import compare, too_few
from evals.kept_runs import asked as run_of
from evals.kept_runs import kept
from evals.likeness import likeness
from evals.questions import Question, Questions
from evals.report import Finding, Report, failed, passed, skipped
from evals.runs import Run
from evals.seats import Seats
from penstock.errors import PenstockError
from penstock.gates import Gate

CONCURRENCY = 8
FIRST_TOKEN_S = 300
NOT_ASKED = "the gate does not ask for it"
WhyNot = Callable[[Candidate], Sequence[str]]


@dataclass
class Trial:
    """One version before one gate. `why_not` says what vLLM cannot serve of it; `told` hears every finding as it is
    made, `doing` what is done."""

    gate: Gate
    name: str
    candidate: Candidate
    incumbent: Candidate | None
    alias: str | None
    questions: Questions
    seats: Seats
    why_not: WhyNot | None = None
    told: Callable[[Finding], None] = lambda _: None
    doing: Callable[[str], None] = lambda _: None
    findings: list[Finding] = field(default_factory=list)

    def note(self, *findings: Finding) -> None:
        for finding in findings:
            self.findings.append(finding)
            self.told(finding)

    @property
    def stopped_by(self) -> Finding | None:
        return next((one for one in self.findings if one.stops), None)


async def judge(trial: Trial) -> Report:
    """Raises PenstockError only for what says nothing about the version, such as a file of the gate's that is gone."""
    began = time.monotonic()
    for finding in from_files(trial):
        trial.note(finding)
    trial.note(await parity.end_of_turn(trial.candidate))
    if trial.stopped_by:
        trial.note(*not_made(trial, f"not asked, since {trial.stopped_by.check} has stopped it already"))
    else:
        await asked(trial)
    return Report(
        trial.candidate.name,
        trial.candidate.version.digest,
        trial.incumbent.name if trial.incumbent else None,
        trial.alias,
        trial.name,
        trial.gate.model_dump(mode="json", exclude={"file"}),
        trial.findings,
        round(time.monotonic() - began, 2),
    )


def from_files(trial: Trial) -> Iterator[Finding]:
    if not trial.gate.exportable:
        yield skipped("exportable", NOT_ASKED, required=False)
    elif trial.why_not is None:
        yield skipped("exportable", "what vLLM cannot serve is not known here", required=False)
    elif reasons := trial.why_not(trial.candidate):
        yield failed("exportable", "; ".join(reasons))
    else:
        yield passed("exportable", "vLLM serves what it is made of")
    yield from likeness(trial.candidate, trial.gate.changed, trial.incumbent)
    for question in trial.questions.tasks if trial.incumbent else ():
        if question.regression and (why := too_few(len(question.task.items))):
            yield skipped(regression_of(question), f"{why}; ask more, or say `regression: false` in the gate")


def not_made(trial: Trial, why: str) -> Iterator[Finding]:
    for check in ["serves", "parity", *(one.check for one in trial.questions.tasks), "latency"]:
        yield skipped(check, why)


async def asked(trial: Trial) -> None:
    """Whatever an engine is needed for."""
    serves = await served(trial)
    trial.note(serves)
    if serves.stops:
        return trial.note(*[one for one in not_made(trial, "nothing answers") if one.check != "serves"])
    trial.note(await made(trial, "parity", compared_with_training))
    runs = {}
    for question in trial.questions.tasks:
        found = await run(trial, trial.candidate, question)
        runs[question.check] = found
        trial.note(found if isinstance(found, Finding) else threshold(question, found))
    for question in trial.questions.tasks:
        before = runs[question.check]
        if isinstance(before, Run):
            trial.note(await regression(trial, question, before))
    trial.note(await made(trial, "latency", paced))


async def made(trial: Trial, check: str, make: Callable[[Trial], Awaitable[Finding]]) -> Finding:
    try:
        return await make(trial)
    except PenstockError as error:
        return skipped(check, error.message)


def dtype_of(trial: Trial) -> str | None:
    """In which the engine for parity computes; None where nobody can say, or wants to know."""
    asked = trial.gate.parity
    return (asked.dtype or trial.seats.finest(trial.candidate)) if asked else None


async def served(trial: Trial) -> Finding:
    """One token of it, by its name."""
    trial.doing(f"starting an engine for {trial.candidate.name}")
    try:
        seat = await trial.seats.of(trial.candidate, dtype_of(trial))
        body = {"model": seat.model, "prompt": "a", "max_tokens": 1, "temperature": 0}
        answer = await seat.replica.client.ask("POST", "/v1/completions", orjson.dumps(body), timeout_s=FIRST_TOKEN_S)
        if answer.status != 200:
            raise from_answer(answer.status, answer.body)
    except PenstockError as error:
        return failed("serves", error.message)
    return passed("serves", f"it answers at {seat.engine}", engine=seat.engine)


async def compared_with_training(trial: Trial) -> Finding:
    asked = trial.gate.parity
    if asked is None:
        return skipped("parity", NOT_ASKED, required=False)
    dtype = dtype_of(trial)
    seat = await trial.seats.of(trial.candidate, dtype)
    trial.doing("comparing its tokens with the training stack's")
    items = trial.questions.prompts[: asked.prompts]
    return await parity.parity(trial.candidate, seat.replica.client, seat.model, items, asked, dtype)


async def run(trial: Trial, candidate: Candidate, question: Question) -> Run | Finding:
    """Its answers, kept ones where there are any; or why there are none."""
    engine = trial.seats.identity(candidate)
    if found := kept(candidate, engine, question.task):
        return found
    try:
        seat = await trial.seats.of(candidate)
        trial.doing(f"asking {candidate.name}: {question.check}, {len(question.task.items)} items")
        return await run_of(candidate, seat, engine, question.task, CONCURRENCY)
    except PenstockError as error:
        return skipped(question.check, error.message)


def threshold(question: Question, run: Run) -> Finding:
    result = run.result
    low, high = result.interval
    shown = f"{result.score:.4f} of {result.n} items, 95 % between {low:.4f} and {high:.4f}"
    figures = {
        "score": result.score,
        "interval": [low, high],
        "n": result.n,
        "errors": result.errors,
        "cut": result.cut,
    }
    if result.errors:
        return failed(question.check, f"{result.errors} of {result.n} items have no answer", **figures)
    if question.at_least is None:
        return passed(question.check, f"{shown}; no score is asked for", **figures)
    value = low if question.by == "interval" else result.score
    what = "the interval begins" if question.by == "interval" else "the score is"
    if value < question.at_least:
        return failed(question.check, f"{what} at {value:.4f}, below {question.at_least:g}: {shown}", **figures)
    return passed(question.check, f"{shown}; {question.at_least:g} is asked for", **figures)


async def regression(trial: Trial, question: Question, after: Run) -> Finding:
    check = regression_of(question)
    if not question.regression:
        return skipped(check, NOT_ASKED, required=False)
    if trial.incumbent is None:
        return skipped(check, nothing_before(trial), required=False)
    before = await run(trial, trial.incumbent, question)
    if isinstance(before, Finding):
        return skipped(check, f"{trial.incumbent.name} cannot be asked: {before.why}")
    try:
        found = compare(before, after)
    except PenstockError as error:
        return skipped(check, error.message)
    low, high = found.difference.interval
    shown = (
        f"{found.difference.mean:+.4f} against {trial.incumbent.name}'s {found.before.score:.4f}, "
        f"95 % between {low:+.4f} and {high:+.4f}, sign test {found.sign_p:.2g}"
    )
    figures = {
        "before": found.before.score,
        "after": found.after.score,
        "difference": found.difference.mean,
        "interval": [low, high],
        "sign_p": found.sign_p,
        "n": found.after.n,
    }
    if found.verdict == "regression":
        return failed(check, f"worse than what {trial.alias} points to: {shown}", **figures)
    return passed(check, f"{found.verdict}: {shown}", **figures)


def regression_of(question: Question) -> str:
    return f"regression {question.check.removeprefix('task ')}"


async def paced(trial: Trial) -> Finding:
    asked = trial.gate.latency
    if asked is None:
        return skipped("latency", NOT_ASKED, required=False)
    if trial.incumbent is None:
        return skipped("latency", nothing_before(trial), required=False)
    trial.doing("timing it beside the incumbent")
    prompts = [one.messages for one in trial.questions.prompts[: asked.requests]]
    if trial.seats.together(trial.candidate, trial.incumbent):
        mine, its = await latency.in_turn(
            await timing(trial, trial.candidate), await timing(trial, trial.incumbent), prompts, asked.requests
        )
        return latency.judged(mine, its, asked, in_turn=True)
    mine = await latency.alone(await timing(trial, trial.candidate), prompts, asked.requests)
    its = await latency.alone(await timing(trial, trial.incumbent), prompts, asked.requests)
    return latency.judged(mine, its, asked, in_turn=False)


async def timing(trial: Trial, candidate: Candidate) -> latency.Ask:
    assert trial.gate.latency is not None
    seat = await trial.seats.of(candidate)
    return latency.asking(seat.chat, seat.model, trial.gate.latency.tokens)


def nothing_before(trial: Trial) -> str:
    return (
        f"{trial.alias} is new: there is nothing to compare with" if trial.alias else "there is nothing to compare with"
    )
