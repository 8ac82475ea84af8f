"""Which measurements are to be believed: those during which nobody else worked and the core had its full speed."""

from statistics import mean

from benchmarks.figures import percentile
from benchmarks.rounds import Sample

Runs = dict[str, dict[str, list[Sample]]]  # gateway -> work -> its samples

QUIET = 0.2
FEWEST = 3
FAST_PERCENT = 10


def kept(runs: Runs, name: str, work: str) -> list[Sample]:
    """The quiet samples; the least disturbed where there are too few of them. Never one with a wrong answer."""
    whole = [sample for sample in runs.get(name, {}).get(work, []) if not sample.errors]
    fast_s = fastest_reference_s(runs)
    whole.sort(key=lambda sample: disturbance(sample, fast_s))
    return whole[: max(FEWEST, len(quiet(runs, name, work)))]


def quiet(runs: Runs, name: str, work: str) -> list[Sample]:
    fast_s = fastest_reference_s(runs)
    return [one for one in runs[name][work] if not one.errors and disturbance(one, fast_s) <= QUIET]


def fastest_reference_s(runs: Runs) -> float:
    looks = (s for works in runs.values() for samples in works.values() for one in samples for s in one.reference_s)
    return percentile(looks, FAST_PERCENT)


def disturbance(sample: Sample, fast_s: float) -> float:
    """The larger of what others used of a core, and how much slower than it can be the gateway's core was."""
    return max(sample.foreign_share, mean(sample.reference_s) / fast_s - 1)
