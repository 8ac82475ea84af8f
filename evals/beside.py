"""Several models beside each other on one task: what each gets right, and what a right answer costs."""

from collections.abc import Sequence
from statistics import fmean

from evals.compare import compare
from evals.runs import Run
from penstock.errors import BadRequest

HEADS = (
    "model",
    "right",
    "95 % interval",
    "against the first",
    "tokens per right answer",
    "read",
    "written",
    "latency",
)


def beside(runs: Sequence[Run]) -> str:
    """A Markdown table, a row for each run. `read` and `written` are tokens an item, of all calls together; latency is
    the median; `against the first` is the paired difference with its 95 % interval."""
    rows = [HEADS, ("---", *["---:"] * (len(HEADS) - 1)), *(row(run, runs[0]) for run in runs)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows)


def row(run: Run, first: Run) -> tuple[str, ...]:
    found = run.result
    answered = [record for record in run.records if record.error is None]
    missing = f" ({found.errors} without an answer)" if found.errors else ""
    return (
        found.model,
        f"{found.score:.3f} of {found.n}{missing}",
        f"{found.interval.low:.3f} to {found.interval.high:.3f}",
        against(run, first),
        f"{found.tokens_per_correct:,.0f}" if found.tokens_per_correct else "none is right",
        f"{fmean(record.prompt_tokens for record in answered):,.0f}" if answered else "",
        f"{fmean(record.completion_tokens for record in answered):,.0f}" if answered else "",
        f"{found.latency_s:.2f} s" if found.latency_s is not None else "",
    )


def against(run: Run, first: Run) -> str:
    """Empty where the two cannot be compared."""
    if run is first:
        return ""
    try:
        found = compare(first, run)
    except BadRequest:
        return ""
    low, high = found.difference.interval
    return f"{found.difference.mean:+.3f} ({low:+.3f} to {high:+.3f})"
