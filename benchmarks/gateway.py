"""What a gateway costs: `python -m benchmarks.gateway --gateway 'NAME=CMD@URL' --json gateway.json`.

Direct, nginx, Penstock and whatever else is given are measured in turn, round by round, so that whatever else the
machine does falls on all of them. The gateway has core 0 to itself; the load generator and an engine that costs next
to nothing share core 1, which is kept busy besides: half idle, it would make core 0 faster where both are threads of
one. What counts is CPU time of the gateway's whole process tree per answered request: it says how many requests a core
carries, and it moves far less than any time on the wall.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.contestants import Contestant, free_port, given, nginx, penstock, penstock_for, places, running
from benchmarks.figures import markdown
from benchmarks.gateway_report import DIRECT, memory_table, overhead_table, replica_table, self_check_table
from benchmarks.processes import end_in_order, started
from benchmarks.quiet import Runs, quiet
from benchmarks.reference import kept_busy
from benchmarks.rounds import CLIENT_CORE, GATEWAY_CORE, Range, Sample, Work
from benchmarks.stacks import own_shares, recorded

REQUEST = Work("request")
PACED = Work("paced", tokens=100, stream=True, pace_ms=10, times=2)
BURST = Work("burst", tokens=100, stream=True)
SHORT = Work("short", tokens=8, stream=True)
ROUNDS_FOR_ONE = 4
PROFILE_S = 10
PROFILE_ROWS = 30


@dataclass(frozen=True)
class Mock:
    """The engine that everybody stands before; each of its addresses answers as a replica of its own would."""

    pid: int
    urls: Sequence[str]
    socket: str


def main(
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CMD@URL",
            help="Another gateway; {port}, {upstream}, {upstreams} and {socket} are filled in. Ratios are to the first",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Undisturbed ones; 0: only what else is asked for")] = 5,
    seconds: Annotated[float, typer.Option(help="How long each measurement counts")] = 1,
    clients: int = 32,
    rate: Annotated[float, typer.Option(help="Requests a second where latency is measured")] = 20,
    prompt_bytes: int = 600,
    unix: Annotated[bool, typer.Option(help="Penstock once more, with the engine on a Unix socket")] = False,
    replicas: Annotated[str, typer.Option(help="Penstock before so many replicas, such as 2,8,32,64")] = "",
    keys: Annotated[str, typer.Option(help="Penstock with so many keys, each with limits, such as 1,10000")] = "",
    memory: Annotated[int, typer.Option(help="Memory over so many requests, such as 200000")] = 0,
    profile: Annotated[Path | None, typer.Option(help="Where Penstock's time goes, as folded stacks (py-spy)")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every figure of every round")] = None,
) -> None:
    """Prints Markdown tables: medians over the rounds, with the smallest and the largest in brackets."""
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for its clients and the engine")
    end_in_order()
    counts = [int(word) for word in replicas.split(",") if word]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-"))
        mock = stack.enter_context(mock_engine(max(counts, default=1)))
        spin_pid = stack.enter_context(kept_busy(CLIENT_CORE))
        place = Range(mock.pid, spin_pid, Path(name), prompt_bytes, clients, seconds)
        crowd = contestants(gateway or [], mock, place.folder, unix=unix)
        for count in [int(word) for word in keys.split(",") if word]:
            one, file = penstock_for(count, mock.urls[0], free_port(), place.folder)
            place.keys[one.url] = file
            crowd.insert(len(crowd) - len(gateway or []), one)
        if rounds:
            works = (REQUEST, PACED, BURST, Work("latency", rate=rate, times=2))
            runs = in_turn(place, crowd, works, rounds, {DIRECT: mock.urls[0]})
            show(overhead_table(runs, crowd[-len(gateway)].name if gateway else "Penstock"), self_check_table(runs))
            found["overhead"] = runs
        if counts:
            several = [penstock(mock.urls[:count], free_port(), place.folder, str(count)) for count in counts]
            found["replicas"] = in_turn(place, several, (REQUEST, PACED), max(1, rounds), {})
            show(replica_table(found["replicas"]), self_check_table(found["replicas"]))
        if memory:
            found["memory"] = {one.name: memory_of(place, one, memory) for one in crowd}
            show(memory_table(found["memory"], memory))
        if profile:
            profile_of(place, penstock(mock.urls[:1], free_port(), place.folder), profile)
    if json_file:
        json_file.write_text(json.dumps(found, indent=1, default=asdict))


def show(*tables: str) -> None:
    for table in tables:
        typer.echo("\n" + table)


@contextmanager
def mock_engine(ports: int) -> Iterator[Mock]:
    command = [sys.executable, "-m", "benchmarks.mock_engine", "--ports", str(ports)]
    with started(command, CLIENT_CORE, apart=False) as process:
        assert process.stdout
        said = json.loads(process.stdout.readline())
        yield Mock(process.pid, [f"http://127.0.0.1:{port}" for port in said["ports"]], said["socket"])


def contestants(wanted: Sequence[str], mock: Mock, folder: Path, *, unix: bool) -> list[Contestant]:
    """nginx, Penstock, then what was asked for, in that order. Raises typer.BadParameter."""
    upstream = mock.urls[0]
    crowd = []
    try:
        crowd.append(nginx(upstream, free_port(), folder))
    except LookupError as error:
        typer.echo(f"without nginx: {error}", err=True)
    crowd.append(penstock([upstream], free_port(), folder))
    if unix:
        crowd.append(penstock([f"unix:{mock.socket}"], free_port(), folder, "Penstock, Unix socket"))
    try:
        return crowd + [given(text, places([upstream], mock.socket, free_port())) for text in wanted]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def in_turn(
    place: Range, crowd: Sequence[Contestant], works: Sequence[Work], rounds: int, direct: Mapping[str, str]
) -> Runs:
    """All stand ready, one of them at a time is at work; every second round goes the other way round.

    Goes on until everybody has `rounds` quiet samples of each work, or has been measured ROUNDS_FOR_ONE times as often.
    `direct`: what is there already, its name and address.
    """
    urls = {**direct, **{one.name: one.url for one in crowd}}
    runs: Runs = {name: {work.name: [] for work in works} for name in urls}
    with ExitStack() as stack:
        pids = {one.name: stack.enter_context(running(one, GATEWAY_CORE, place.folder)) for one in crowd}
        for number in range(rounds * ROUNDS_FOR_ONE):
            for name in list(urls)[:: 1 if number % 2 == 0 else -1]:
                for work in (work for work in works if len(quiet(runs, name, work.name)) < rounds):
                    sample = place.measure(urls[name], pids.get(name), work)
                    runs[name][work.name].append(sample)
                    typer.echo(f"round {number + 1}: {name}, {work.name}: {line_of(sample)}", err=True)
    return runs


def line_of(sample: Sample) -> str:
    if sample.errors:
        return f"thrown away: {sample.errors}"
    disturbed = f"others {sample.foreign_share:.0%} of a core, reference {1000 * mean(sample.reference_s):.2f} ms"
    return f"{sample.cpu_us:.1f} us, {sample.per_s:,.0f}/s, {disturbed}"


def memory_of(place: Range, one: Contestant, requests: int) -> list[int]:
    """Bytes resident before, at each quarter of the plain requests (half of all), of the streams (the other half)."""
    with running(one, GATEWAY_CORE, place.folder) as pid:
        plain, _ = place.load(one.url, pid, REQUEST, ["--requests", str(requests // 2)])
        streams, _ = place.load(one.url, pid, SHORT, ["--requests", str(requests // 2)])
    for load in (plain, streams):
        if load.errors:
            typer.echo(f"{one.name}: {load.errors}", err=True)
    return plain.resident_bytes + streams.resident_bytes[1:]


def profile_of(place: Range, one: Contestant, file: Path) -> None:
    """The frames that had the processor most often while plain requests were answered."""
    with running(one, GATEWAY_CORE, place.folder) as pid, recorded(pid, PROFILE_S, file):
        place.load(one.url, pid, REQUEST, ["--warm-s", "0", "--seconds", str(PROFILE_S)])
    shares = own_shares(file.read_text())
    rows = [[frame, f"{times / shares.total():.1%}"] for frame, times in shares.most_common(PROFILE_ROWS)]
    show(markdown(["innermost frame", "share"], rows))


if __name__ == "__main__":
    typer.run(main)
