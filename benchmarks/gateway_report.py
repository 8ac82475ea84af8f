"""The tables of `benchmarks.gateway`: medians over the rounds, with the smallest and the largest in brackets."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.figures import markdown, median, percentile, ratio, spread
from benchmarks.quiet import Runs, kept

MIB = 2**20
DIRECT = "direct"
FULL_SHARE = 0.97  # a core busier than this is what sets the pace

OVERHEAD = ["gateway", "CPU us/request", "/", "CPU us/chunk, paced", "/", "CPU us/chunk, no pause", "/"]
OVERHEAD += ["core req/s", "req/s, all clients", "added p50 us", "added p99 us"]
SELF_CHECK = ["measurement", "rounds kept", "gateway's core", "client's core"]
SELF_CHECK += ["others, % of a core", "reference, ms", "limit", "errors"]


def cpu_us(runs: Runs, name: str, work: str) -> list[float]:
    return [sample.cpu_us for sample in kept(runs, name, work)]


def overhead_table(runs: Runs, base: str) -> str:
    """What each gateway costs; the ratios are to `base`."""
    works = ("request", "paced", "burst")
    rows = []
    for name in runs:
        row = [name]
        for work in works:
            costs = cpu_us(runs, name, work) if name != DIRECT else []
            row += [spread(costs, 1), ratio(median(costs), median(cpu_us(runs, base, work)))]
        busiest = median(cpu_us(runs, name, "request")) if name != DIRECT else float("nan")
        row.append(f"{1e6 / busiest:,.0f}" if busiest > 0 else "-")
        row.append(spread([sample.per_s for sample in kept(runs, name, "request")]))
        row += added_latency_us(runs, name)
        rows.append(row)
    return markdown([f"/ {base}" if heading == "/" else heading for heading in OVERHEAD], rows)


def added_latency_us(runs: Runs, name: str) -> list[str]:
    """p50 and p99 over direct's, of all rounds' requests together; a round alone has too few for a p99."""
    if name == DIRECT or not runs.get(DIRECT):
        return ["-", "-"]
    direct, through = ([us for one in kept(runs, who, "latency") for us in one.latency_us] for who in (DIRECT, name))
    added = [percentile(through, percent) - percentile(direct, percent) for percent in (50, 99)]
    return ["-" if math.isnan(us) else f"{us:,.0f}" for us in added]


def self_check_table(runs: Runs) -> str:
    """Whether the figures can be believed: what errors were thrown away, and which core set the pace."""
    rows = []
    for name, works in runs.items():
        for work, samples in works.items():
            whole = kept(runs, name, work)
            gateway, client = (
                median(getattr(sample, share) for sample in whole) for share in ("gateway_share", "client_share")
            )
            rows.append(
                [
                    f"{name}, {work}",
                    f"{len(whole)} of {len(samples)}",
                    "-" if math.isnan(gateway) else f"{gateway:.0%}",
                    "-" if math.isnan(client) else f"{client:.0%}",
                    spread([100 * sample.foreign_share for sample in whole]),
                    spread([1000 * mean(sample.reference_s) for sample in whole], 2),
                    limit(gateway, client),
                    "; ".join(sorted({wrong for sample in samples for wrong in sample.errors})) or "-",
                ]
            )
    return markdown(SELF_CHECK, rows)


def limit(gateway_share: float, client_share: float) -> str:
    """What kept it from being faster: the gateway, the harness, or nothing (the pace was set)."""
    if gateway_share >= FULL_SHARE:
        return "gateway"
    return "harness" if client_share >= FULL_SHARE else "-"


def replica_table(runs: Runs) -> str:
    """Penstock's cost by the number of replicas behind it, as a ratio to the fewest."""
    fewest = next(iter(runs))
    rows = []
    for name in runs:
        row = [name]
        for work in ("request", "paced"):
            costs = cpu_us(runs, name, work)
            row += [spread(costs, 1), ratio(median(costs), median(cpu_us(runs, fewest, work)))]
        rows.append(row)
    return markdown(["replicas", "CPU us/request", f"/ {fewest}", "CPU us/chunk, paced", f"/ {fewest}"], rows)


def memory_table(resident: Mapping[str, Sequence[int]], requests: int) -> str:
    """Memory before, on the way, and after; the growth is from the first stop on the way, when pools are filled."""
    stops = max(len(points) for points in resident.values()) - 1
    headings = ["gateway", "before, MiB", *(f"{requests * n // stops:,}" for n in range(1, stops + 1)), "growth, MiB"]
    rows = [
        [name, *(f"{point / MIB:.1f}" for point in points), f"{(points[-1] - points[1]) / MIB:+.1f}"]
        for name, points in resident.items()
    ]
    return markdown(headings, rows)
