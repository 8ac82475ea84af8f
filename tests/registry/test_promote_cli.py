"""`penstock promote`, `gate` and `rollback` as a person types them, before simulated engines."""

import asyncio
import json
import os
import subprocess
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.sim import Fault, simulator
from penstock import audit
from penstock.cli import app
from penstock.references import Reference
from penstock.store import opened
from registry.adding import About, add
from registry.aliases import all_aliases, move
from registry.artifacts import artifacts_at
from tests.penstock.test_cli import PENSTOCK, penstock
from tests.registry.conftest import MakeModel

BARE = {"tokenizer.json": None, "tokenizer_config.json": None}
QUICK = """
parity: null
safety: {prompts: harmful.jsonl, refusals: [" "], at_least: 0.9}
latency: {requests: 2, tokens: 4, first_token: 1000, per_token: 1000}
"""


@dataclass
class Site:
    """m@1 to m@3 in a registry; m@production points to 1; `gate.yaml` asks for answers with a space in them."""

    folder: Path

    def run(self, *words: str, status: int = 0) -> str:
        """Both streams; a process that ends otherwise is told."""
        shown = penstock(*words)
        assert shown.returncode == status, shown.stdout + shown.stderr
        assert "Traceback" not in shown.stderr
        return shown.stdout + shown.stderr

    def promoted(self, *words: str, status: int = 0, faults: tuple[Fault, ...] = (), asked: bool = True) -> str:
        """While a simulator serves each of the two; whether they were asked is checked."""

        async def done() -> str:
            async with AsyncExitStack() as stack:
                mine = await stack.enter_async_context(simulator(*faults, model="m@2"))
                its = await stack.enter_async_context(simulator(model="m@1"))
                urls = ["--candidate-url", mine.url, "--incumbent-url", its.url]
                process = await asyncio.create_subprocess_exec(
                    *(PENSTOCK, *words, *urls),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=os.environ,
                )
                out, _ = await process.communicate()
                assert process.returncode == status, out.decode()
                assert bool(mine.requests) == asked
                return out.decode()

        return asyncio.run(done())

    @property
    def now(self) -> int:
        async def done() -> int:
            async with opened(None) as store:
                return (await all_aliases(store, "m"))[0].version

        return asyncio.run(done())

    def entries(self, action: str) -> list[dict[str, Any]]:
        async def done() -> list[dict[str, Any]]:
            async with opened(None) as store:
                return [json.loads(each.details) for each in await audit.last(store, 50) if each.action == action]

        return asyncio.run(done())


@pytest.fixture
def site(tmp_path: Path, make_model: MakeModel) -> Site:
    async def filled() -> None:
        async with opened(None) as store:
            for seed in range(3):
                await add(store, artifacts_at(None), make_model(seed, files=BARE), About("m"), "me")
            await move(store, "production", Reference("m", 1), None, "me")

    asyncio.run(filled())
    made = Site(tmp_path)
    (tmp_path / "gate.yaml").write_text(QUICK)
    (tmp_path / "harmful.jsonl").write_text("\n".join(json.dumps({"prompt": f"Harm {n}"}) for n in range(8)))
    return made


GATE = ("--gate", "gate.yaml")


def test_a_version_that_passes_is_pointed_to_and_comes_back(site: Site) -> None:
    shown = site.promoted("promote", "m@2", "production", *GATE)
    for line in ("passed   exportable", "passed   safety", "passed   latency", "from version 1, to version 2"):
        assert line in shown
    assert site.now == 2
    moved = json.loads(site.run("registry", "show", "m@2", "--json"))["moves"][-1]
    assert (moved["report"]["passed"], moved["report"]["incumbent"]) == (True, "m@1")
    assert site.entries("alias.moved")[-1]["report"] == moved["report"]
    assert "already" in site.promoted("promote", "m@2", "production", *GATE, asked=False)
    assert "from version 2, to version 1" in site.run("rollback", "m@production", "--reason", "too short")
    assert site.now == 1
    assert site.entries("alias.moved")[-1]["report"] == {"rollback": {"from": 2, "reason": "too short"}}
    assert "nothing before version 1" in site.run("rollback", "m@production", status=1)


def test_a_version_that_is_stopped_moves_only_by_force_and_that_is_kept(site: Site) -> None:
    bad = (Fault("status", status=400, path="/v1/chat/completions"),)
    shown = site.promoted("promote", "m@2", "production", *GATE, status=2, faults=bad)
    assert "failed   safety" in shown
    assert "m@2 is stopped by its gate; m@production stays where it is" in shown
    assert site.now == 1
    assert "say why" in site.run("promote", "m@2", "production", "--force", " ", status=1)
    site.promoted("promote", "m@2", "production", *GATE, "--force", "the other one is on fire", faults=bad)
    assert site.now == 2
    report = site.entries("alias.moved")[-1]["report"]
    assert (report["passed"], report["forced"]) == (False, "the other one is on fire")
    assert "safety" in [one["check"] for one in report["findings"] if one["verdict"] == "failed"]


def test_a_gate_that_cannot_be_asked_is_no_way_round_it(site: Site) -> None:
    words = ("promote", "m@2", "production", "--gate", str(site.folder / "none.yaml"))
    assert "no file and no gate" in site.run(*words, status=1)
    assert site.now == 1
    shown = site.run(*words, "--force", "I know it")
    assert "the gate cannot be asked" in shown
    report = site.entries("alias.moved")[-1]["report"]
    assert "no file and no gate" in report["error"]
    assert site.now == 2


def test_asking_alone_changes_nothing(site: Site) -> None:
    assert "m@2 passes its gate; nothing was changed" in site.promoted("gate", "m@2", "production", *GATE)
    found = json.loads(site.promoted("promote", "m@2", "production", "--dry-run", "--json", *GATE))
    assert (found["passed"], found["moved"], found["candidate"]) == (True, False, "m@2")
    assert site.now == 1
    assert len(site.entries("alias.moved")) == 1


def test_who_expects_another_version_is_told(site: Site) -> None:
    words = ("promote", "m@2", "production", *GATE, "--expect")
    assert "points to version 1, and not, as expected, to 3" in site.promoted(*words, "3", status=1, asked=False)
    assert "and not, as expected, to none" in site.promoted(*words, "none", status=1, asked=False)
    site.promoted(*words, "1")
    assert site.now == 2


def test_a_server_that_has_something_else_is_not_taken_for_the_version(site: Site) -> None:
    async def done() -> tuple[int | None, str]:
        async with simulator(model="another") as other:
            process = await asyncio.create_subprocess_exec(
                *(PENSTOCK, "promote", "m@2", "production", *GATE, "--candidate-url", other.url),
                *("--incumbent-url", other.url),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=site.folder,
            )
            out, _ = await process.communicate()
            return process.returncode, out.decode()

    code, said = asyncio.run(done())
    assert (code, site.now) == (2, 1), said
    assert "serves another, and nothing as m@2" in said


def test_who_was_overtaken_while_the_gate_was_asked_is_refused(site: Site) -> None:
    """The version that the gate compared with is not there any more."""

    async def done() -> tuple[int | None, str]:
        async with (
            simulator(model="m@2", ttft_s=0.5) as mine,
            simulator(model="m@1") as its,
            opened(None) as store,
        ):
            urls = ["--candidate-url", mine.url, "--incumbent-url", its.url]
            process = await asyncio.create_subprocess_exec(
                *(PENSTOCK, "promote", "m@2", "production", *GATE, *urls),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=site.folder,
            )
            async with asyncio.timeout(60):
                while not mine.requests:
                    await asyncio.sleep(0.01)
            await move(store, "production", Reference("m", 3), 1, "me")  # before the second of a dozen slow answers
            out, _ = await process.communicate()
            return process.returncode, out.decode()

    status, shown = asyncio.run(done())
    assert status == 1, shown
    assert "run it again" in shown
    assert site.now == 3


def test_a_canary_gets_its_share_and_is_rolled_back_first(site: Site) -> None:
    shown = site.promoted("promote", "m@2", "production", *GATE, "--canary", "10")
    assert "m@production: version 2 gets 10 % of the requests of 1" in shown
    assert site.now == 1
    assert site.entries("canary.started")[-1]["report"]["passed"]
    assert "the canary of m@production, version 2, has ended" in site.run("rollback", "m@production")
    assert site.entries("canary.ended")[-1]["outcome"] == "stopped"
    assert site.now == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["promote", "m@9", "production"], "m has no version 9: its last is 3"),
        (["promote", "m", "production"], "names no version"),
        (["promote", "m@2", "7"], "an alias is not a number"),
        (["promote", "m@2", "production", "--canary", "60"], "at most 50 percent"),
        (["promote", "m@2", "staging", "--canary", "5"], "promote it without --canary"),
        (["promote", "m@2", "production", "--expect", "x"], "write the number of a version, or none"),
        (["gate", "m@2", "--candidate-url", "http://me:secret@host"], "host: write http://HOST:PORT"),
        (["gate", "n@1"], "no model is named 'n'"),
        (["rollback", "m@2"], "an alias is rolled back, such as m@production"),
        (["rollback", "m@staging"], "m@staging is not there"),
        (["rollback", "m@production", "--to", "3"], "never pointed to version 3"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(site: Site, words: list[str], says: str) -> None:
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 1
    assert says in shown.output
    assert "secret" not in shown.output
    assert shown.output.startswith("penstock: ")
    assert site.now == 1
