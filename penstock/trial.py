"""A version before its gate: configuration, registry and engines put together."""

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine import machine
from engine.machine import Machine
from evals.candidates import Candidate, candidate
from evals.gate import Trial, judge
from evals.gate_file import chosen
from evals.questions import FAMILY_ITEMS, questions
from evals.report import Finding, Report
from evals.seats import Elsewhere, Seat, seats
from evals.tasks import Task
from penstock.config import Config, Engine, is_address
from penstock.errors import BadRequest, PenstockError, StartError
from penstock.gates import Gate
from penstock.references import Reference, is_reference
from penstock.store import opened
from penstock.task import named
from registry.aliases import all_aliases
from registry.artifacts import artifacts_at

STOP_S = 5.0
ELSEWHERE = "or name servers that run: --candidate-url and --incumbent-url"


@dataclass(frozen=True)
class Places:
    """Where the two are served already; None: an engine is started here."""

    candidate: str | None = None
    incumbent: str | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class Asking:
    """A version that is to be pointed to by an alias, and how it is to be judged."""

    reference: Reference
    alias: str | None = None
    gate: str | None = None
    places: Places = field(default_factory=Places)
    told: Callable[[Finding], None] = lambda _: None
    doing: Callable[[str], None] = lambda _: None


async def tried(config: Config, asking: Asking) -> Report:
    """Beside what the alias points to now. Raises PenstockError where nothing can be said about the version."""
    for url in filter(None, (asking.places.candidate, asking.places.incumbent)):
        if not is_address(url) or "@" in url:  # reports stand in the audit log, where no password may
            raise BadRequest(f"{url.rpartition('@')[2]}: write http://HOST:PORT or unix:/PATH, a key as --api-key")
    name, gate = chosen(config.gates, asking.reference.name, asking.alias, asking.gate)
    asked = questions(gate, task)
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        mine, its = await both(config, asking, Path(scratch))
        elsewhere = {
            each.name: Elsewhere(url, asking.places.api_key)
            for each, url in ((its, asking.places.incumbent), (mine, asking.places.candidate))
            if each and url
        }
        them = [each for each in (mine, its) if each]
        here = usable([each for each in them if each.name not in elsewhere])
        async with seats(them, like(config, mine, gate), here, elsewhere) as found:
            return await judge(
                Trial(
                    gate=gate,
                    name=name,
                    candidate=mine,
                    incumbent=its,
                    alias=f"{asking.reference.name}@{asking.alias}" if asking.alias else None,
                    questions=asked,
                    seats=found,
                    why_not=why_not,
                    told=asking.told,
                    doing=asking.doing,
                )
            )


async def both(config: Config, asking: Asking, scratch: Path) -> tuple[Candidate, Candidate | None]:
    """The version, and what its alias points to, if that is another one."""
    async with opened(config.state.database) as store:
        kept = artifacts_at(config.registry.artifacts)
        mine = await candidate(store, kept, asking.reference, scratch)
        there = {each.alias: each.version for each in await all_aliases(store, asking.reference.name)}
        now = there.get(asking.alias or "")
        if now is None or now == mine.version.number:
            return mine, None
        return mine, await candidate(store, kept, Reference(mine.version.name, now), scratch)


def usable(here: Sequence[Candidate]) -> Machine:
    """Raises StartError where an engine must be started for these and cannot be."""
    found = machine.detect()
    if here:
        try:
            assert found.device
        except StartError as error:
            raise StartError(f"{error.message}; {ELSEWHERE}") from error
    return found


def like(config: Config, candidate: Candidate, gate: Gate | None = None) -> Engine:
    """An engine as the configuration has one for this model, or for its base; with the gate's flags above its own."""
    names = {candidate.version.name, candidate.base.name}
    local = [each for each in config.engines.values() if each.model and not each.urls and is_reference(each.model)]
    same = [each for each in local if Reference.of(each.model or "").name in names]
    engine = same[0] if same else Engine(model="demo")
    options = {**engine.options, **(gate.options if gate else {})}
    return engine.model_copy(update={"options": options, "replicas": 1, "stop_s": min(engine.stop_s, STOP_S)})


def task(name: str, metric: str | None, items: int | None) -> Task:
    """A file, or as many held-out items of a family as it takes to see a regression."""
    return named(name, metric, items, FAMILY_ITEMS)


def why_not(candidate: Candidate) -> Sequence[str]:
    from training.exportable import why_not as reasons

    return reasons(candidate.folder, candidate.base_folder if candidate.is_adapter else None)


@asynccontextmanager
async def seated(config: Config, reference: Reference) -> AsyncIterator[Seat]:
    """A registered version at an engine of its own, as `penstock eval` asks it."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        async with opened(config.state.database) as store:
            found = await candidate(store, artifacts_at(config.registry.artifacts), reference, Path(scratch))
        async with seats([found], like(config, found), usable([found]), {}) as there:
            yield await there.of(found)


def failure(error: PenstockError, asking: Asking, now: int | None) -> Mapping[str, object]:
    """What stands in the place of a report where none could be made, for a move that is forced."""
    return {"candidate": str(asking.reference), "incumbent": now, "passed": False, "error": error.message}
