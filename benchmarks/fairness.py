"""What a flood of one tenant costs a quiet one: `python -m benchmarks.fairness --rounds 5`.

A simulated engine with few slots (it sleeps rather than computes, so that a laptop will do) and Penstock before it,
which knows how many they are (`models.NAME.concurrent`). One tenant has 64 requests under way all the time, as a batch
job has; the other asks once or twice a second, as people do, first alone, then beside the flood, in turn. Alone it has
the same engine, so that what is compared is the wait alone. Answers last half a second on average, and from half to
one and a half times that; `--even` makes them all of one length, so that all places become free together, which is the
worst there is for who waits for the next.
"""

import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.client import NUMBER, Requests, Tally
from benchmarks.contestants import Contestant, free_port, running
from benchmarks.figures import markdown, percentile, ratio, spread
from benchmarks.load import Crowd
from benchmarks.processes import end_in_order
from penstock.keyring import Keyring, Wanted
from penstock.store import opened

PENSTOCK = str(Path(sys.executable).parent / "penstock")
TTFT_S = 0.05
ITL_S = 0.0125
TOKENS = 37  # on average; TTFT_S + 36 * ITL_S = 0.5 s
WARM_S = 3.0
GIVE_UP_S = 120
UNQUEUED = "no `concurrent`: the engine's own queue"
QUEUED = "`concurrent`"
LIMITED = "`concurrent`, and the flood's key has a limit"


@dataclass(frozen=True)
class Setting:
    """A gateway, and the keys of its two tenants."""

    name: str
    url: str
    quiet: str
    flood: str


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    slots: Annotated[int, typer.Option(help="How many the engine answers at once")] = 8,
    flood: Annotated[int, typer.Option(help="Requests that the one tenant has under way all the time")] = 64,
    rate: Annotated[float, typer.Option(help="How often a second the other asks")] = 1.7,
    requests: Annotated[int, typer.Option(help="How often it asks in each round")] = 30,
    limit: Annotated[int, typer.Option(help="The flood's key's `concurrent`, in the last setting")] = 6,
    even: Annotated[bool, typer.Option("--even", help="All answers have the same length")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every latency of every round")] = None,
) -> None:
    """Prints the quiet tenant's latencies: medians over the rounds, the smallest and the largest in brackets."""
    end_in_order()
    found: dict[str, dict[str, list[list[float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="fairness-") as name:
        folder = Path(name)
        bodies = folder / "bodies.jsonl"
        bodies.write_text(body(even))
        for number in range(rounds):
            for setting in (UNQUEUED, QUEUED, LIMITED):
                with serving(setting, slots, limit if setting == LIMITED else None, folder) as at:
                    ways = found.setdefault(setting, {"alone": [], "beside": []})
                    for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                        took = (
                            beside(flood, at, bodies, rate, requests)
                            if way == "beside"
                            else asked(at, bodies, rate, requests)
                        )
                        ways[way].append(took)
                        typer.echo(f"round {number}: {setting}: {way}: {max(took):.3f} s at most", err=True)
    typer.echo(report(found))
    if json_file:
        json_file.write_text(json.dumps(found, indent=1))


def body(even: bool) -> str:
    """Every request's own number stands in its prompt, and the answer's length is the prompt's."""
    messages = [{"role": "user", "content": f"{NUMBER.decode()} is my number."}]
    length = {"max_tokens": TOKENS, "ignore_eos": True} if even else {}
    return json.dumps({"model": "sim", "messages": messages, "stream": True, **length})


@contextmanager
def serving(name: str, slots: int, limit: int | None, folder: Path) -> Iterator[Setting]:
    """An engine and a gateway of their own. `limit`: how many requests the flood's key may have under way."""
    home = Path(tempfile.mkdtemp(dir=folder))
    pepper = secrets.token_hex(32)
    quiet, flood = asyncio.run(made(home, pepper, limit))
    engine_port, port = free_port(), free_port()
    engine = [PENSTOCK, "sim", "--port", str(engine_port), "--slots", str(slots)]
    engine += ["--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S), "--tokens", str(TOKENS)]
    url = f"http://127.0.0.1:{engine_port}"
    model = {"engine": "e"} if name == UNQUEUED else {"engine": "e", "concurrent": slots, "queue": 1000, "queue_s": 300}
    env = {
        "PENSTOCK_HOME": str(home),
        "PENSTOCK_STATE__PEPPER": pepper,
        "PENSTOCK_ENGINES": json.dumps({"e": {"urls": [url]}}),
        "PENSTOCK_MODELS": json.dumps({"sim": model}),
    }
    command = [PENSTOCK, "serve", "--port", str(port)]
    gateway = Contestant("gateway", command, f"http://127.0.0.1:{port}", env, "sim", quiet)
    with ExitStack() as stack:
        stack.enter_context(running(Contestant("engine", engine, url, model="sim"), None, home))
        stack.enter_context(running(gateway, None, home))
        yield Setting(name, gateway.url, quiet, flood)


async def made(home: Path, pepper: str, limit: int | None) -> list[str]:
    async with opened(f"sqlite:///{home / 'penstock.db'}") as store:
        keyring = Keyring(store, pepper.encode())
        both = [Wanted(name="quiet"), Wanted(name="flood", concurrent=limit)]
        return [(await keyring.create(one, "benchmark")).key for one in both]


def asked(at: Setting, bodies: Path, rate: float, requests: int) -> list[float]:
    """How long each answer to the quiet tenant took, to its last byte. Raises SystemExit if any was not whole."""

    given = Requests(at.url.removeprefix("http://"), [bodies.read_bytes()], True, keys=[at.quiet.encode()])

    async def run() -> list[float]:
        tally = Tally(times=True)
        crowd = Crowd(at.url, given, tally, requests)
        await crowd.open_loop(rate)
        deadline = time.monotonic() + GIVE_UP_S
        while tally.completed + tally.errors.total() < requests and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if tally.errors or tally.completed < requests:
            raise SystemExit(f"{at.name}: {tally.completed} of {requests} were answered; {dict(tally.errors)}")
        return tally.latency_s

    return asyncio.run(run())


def beside(flood: int, at: Setting, bodies: Path, rate: float, requests: int) -> list[float]:
    """The same while the other tenant floods. What is refused to it, for its key's limit, it asks again at once."""
    keys = bodies.with_name("flood-keys")
    keys.write_text(at.flood)
    command = [sys.executable, "-m", "benchmarks.load", at.url, "--bodies", str(bodies), "--keys", str(keys)]
    command += ["--stream", "--clients", str(flood), "--seconds", "3600"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as flooding:
        try:
            time.sleep(WARM_S)
            took = asked(at, bodies, rate, requests)
            if flooding.poll() is not None:
                raise SystemExit(f"{at.name}: the flood has ended")
            return took
        finally:
            flooding.kill()


def report(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    rows = []
    for name, ways in found.items():
        alone, flooded = ways["alone"], ways["beside"]
        row = [name]
        for percent in (50, 99):
            before, after = ([percentile(one, percent) for one in rounds] for rounds in (alone, flooded))
            together = [percentile((took for one in rounds for took in one), percent) for rounds in (alone, flooded)]
            row += [in_ms(before), in_ms(after), ratio(together[1], together[0])]
        rows.append(row)
    headings = ["", "p50 alone, ms", "p50 beside the flood, ms", "ratio", "p99 alone, ms", "p99 beside, ms", "ratio"]
    return markdown(headings, rows)


def in_ms(seconds: Sequence[float]) -> str:
    return spread([1000 * each for each in seconds])


if __name__ == "__main__":
    typer.run(main)
