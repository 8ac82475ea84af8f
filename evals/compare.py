"""Two runs of one task, item by item: is the second worse?"""

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from evals.metrics import CONFIDENCE, Difference, paired_bootstrap, sign_test
from evals.runs import Result, Run
from penstock.errors import BadRequest

Verdict = Literal["regression", "improvement", "no difference shown"]
FEWEST = next(n for n in count(1) if sign_test([1] * n, [0] * n) < 1 - CONFIDENCE)
"""Of fewer items the sign test shows no difference, even if every one is worse."""


@dataclass(frozen=True)
class Comparison:
    before: Result
    after: Result
    difference: Difference
    sign_p: float

    @property
    def verdict(self) -> Verdict:
        """A difference is shown when its interval has zero outside and the exact test says so, too: where few items
        differ, resampling them is too sure."""
        low, high = self.difference.interval
        if self.sign_p >= 1 - CONFIDENCE:
            return "no difference shown"
        return "regression" if high < 0 else "improvement" if low > 0 else "no difference shown"

    def described(self) -> dict[str, Any]:
        low, high = self.difference.interval
        return {
            "before": self.before.described(),
            "after": self.after.described(),
            "difference": self.difference.mean,
            "interval": [low, high],
            "p": self.difference.p,
            "sign_p": self.sign_p,
            "verdict": self.verdict,
        }


def compare(before: Run, after: Run) -> Comparison:
    """Raises BadRequest where the runs are not of the same items and metric, are not whole, or have too few items. What
    failed in `after` counts against it; what failed in `before` would hide a regression, and is refused."""
    if before.head.digest != after.head.digest:
        raise BadRequest(
            f"the runs are not of the same task: {described(before)}; {described(after)}. "
            "The items, the metric and the sampling must be equal"
        )
    for run in (before, after):
        if missing := run.head.items - len(run.records):
            raise BadRequest(f"{described(run)}: {missing} items were not asked yet; run it again with the same --out")
    if errors := before.result.errors:
        raise BadRequest(
            f"{described(before)}: {errors} items have no answer, and a comparison with them would flatter the second "
            "run; run the first again with the same --out"
        )
    if why := too_few(before.head.items):
        raise BadRequest(why)
    scores = {record.id: record.score for record in after.records}
    pairs = [(record.score, scores[record.id]) for record in before.records]
    first, second = zip(*pairs, strict=True)
    return Comparison(before.result, after.result, paired_bootstrap(first, second), sign_test(first, second))


def too_few(items: int) -> str:
    """Why no difference can be shown by so many, empty if one can."""
    if items >= FEWEST:
        return ""
    return f"at least {FEWEST} items are needed: of {items} every one can be worse by chance"


def described(run: Run) -> str:
    head = run.head
    return f"{head.task} by {head.metric}, {head.items} items, {head.model} ({head.digest})"
