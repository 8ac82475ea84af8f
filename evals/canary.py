"""Whether a canary goes on, goes back, or is to be waited for: a pure function of both arms' sums.

It may be asked at any time and as often as one likes: every bound is of a confidence sequence, which holds at all
times at once, so looking again and again proves nothing by chance. Shares are bounded by a mixture of likelihoods
(Robbins 1970; Ville's inequality), means of logarithms by the asymptotic confidence sequence of Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas (2024, theorem 2.2).

`back` needs evidence that it is worse, `on` evidence that it is not, in everything that is measured; what is neither
is waited for, and goes back in the end.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from registry.canaries import Rules
from registry.canary_figures import Both, Figures, Logs

WRONG_BACK = 0.005
"""How often, over all time, one measure turns back a version that is as good as the other; there are five."""
WRONG_ON = 0.05
"""How often one measure lets a version pass that is worse than its limit."""
PRIOR = (0.5, 9.5)
"""Where shares are expected: Beta's, near zero. It decides how soon something is seen, not whether it is true."""
TIGHTEST_AT = 200
"""The number of measurements at which the bounds of means are the tightest."""
FEWEST = 20
"""With fewer measurements in an arm nothing is said of means, as normal as their sums may be."""
LEAST_SHARE = 0.1
"""What fewer of the answers have, such as streams where few ask for them, is no reason to wait."""
STEPS = 60

Decision = Literal["wait", "on", "back"]
State = Literal["worse", "good", "unclear", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Measure:
    """`stable` and `canary` in the unit of the name, `low` and `high` bound their difference (shares) or ratio."""

    name: str
    stable: float | None
    canary: float | None
    low: float | None
    high: float | None
    limit: float
    state: State


@dataclass(frozen=True, slots=True)
class Verdict:
    decision: Decision
    reasons: list[str]
    measures: list[Measure]
    ran_s: float
    figures: Both
    rules: Rules

    def report(self) -> dict[str, Any]:
        """As JSON has it: what stands in the audit log and beside the move."""
        return {
            "canary": self.decision,
            "reasons": self.reasons,
            "ran_s": round(self.ran_s, 1),
            "arms": {"stable": self.figures.stable.described(), "canary": self.figures.canary.described()},
            "measures": [asdict(measure) for measure in self.measures],
            "rules": asdict(self.rules),
        }


def judge(figures: Both, rules: Rules, ran_s: float) -> Verdict:
    """`ran_s`: how long it has run."""
    measures = measured(figures, rules)
    decision, reasons = decided(measures, figures.canary, rules, ran_s)
    return Verdict(decision, reasons, measures, ran_s, figures, rules)


def decided(measures: list[Measure], canary: Figures, rules: Rules, ran_s: float) -> tuple[Decision, list[str]]:
    if worse := [said(measure) for measure in measures if measure.state == "worse"]:
        return "back", worse
    missing = []
    if canary.requests < rules.least_requests:
        missing.append(f"{canary.requests} of {rules.least_requests} requests")
    missing += [f"not clear yet: {said(measure)}" for measure in measures if measure.state == "unclear"]
    if missing and ran_s >= rules.longest_s:
        return "back", [f"too little traffic to tell in {rules.longest_s:g} s", *missing]
    if ran_s < rules.least_s:
        missing.append(f"{ran_s:.0f} of {rules.least_s:g} s")
    if missing:
        return "wait", missing
    return "on", [said(measure) for measure in measures if measure.state == "good"]


def measured(figures: Both, rules: Rules) -> list[Measure]:
    return [
        shares("errors", figures, lambda arm: arm.errors, rules.errors_margin),
        shares("refusals", figures, lambda arm: arm.refused, rules.refusals_margin),
        ratio("first token, seconds", figures, lambda arm: arm.first, rules.latency_ratio),
        ratio("whole answer, seconds", figures, lambda arm: arm.whole, rules.latency_ratio),
        ratio("length, tokens", figures, lambda arm: arm.length, rules.length_ratio, both_ways=True),
    ]


def shares(name: str, figures: Both, of: Callable[[Figures], int], margin: float) -> Measure:
    """Worse: surely more than in the other arm, and by more than `margin`. Good: surely by no more than that."""
    stable, canary = figures.stable, figures.canary

    def difference(wrong: float) -> tuple[float, float]:
        least, most = share_bounds(of(canary), canary.requests, wrong / 2)
        low, high = share_bounds(of(stable), stable.requests, wrong / 2)
        return least - high, most - low

    if not canary.requests:
        return Measure(name, share(of(stable), stable.requests), None, None, None, margin, "unclear")
    first, second = of(stable) / max(1, stable.requests), of(canary) / canary.requests
    low, _ = difference(WRONG_BACK)
    _, high = difference(WRONG_ON)
    state: State = "worse" if low > 0 and second - first > margin else "good" if high <= margin else "unclear"
    return Measure(name, share(of(stable), stable.requests), second, low, high, margin, state)


def ratio(name: str, figures: Both, of: Callable[[Figures], Logs], limit: float, *, both_ways: bool = False) -> Measure:
    """Worse: surely above `limit`, or with `both_ways` below its inverse. Good: surely within."""
    stable, canary = of(figures.stable), of(figures.canary)
    first, second = (stable.typical, canary.typical) if not both_ways else tokens_of(figures)
    if min(stable.count, canary.count) < FEWEST:
        rare = max(stable.count / max(1, figures.stable.requests), canary.count / max(1, figures.canary.requests))
        state: State = "unmeasured" if rare < LEAST_SHARE else "unclear"
        return Measure(name, first, second, None, None, limit, state)
    difference = canary.mean - stable.mean
    sure = mean_bound(stable, WRONG_BACK / 2) + mean_bound(canary, WRONG_BACK / 2)
    likely = mean_bound(stable, WRONG_ON / 2) + mean_bound(canary, WRONG_ON / 2)
    above, below = difference, -difference
    outside = max(above, below) if both_ways else above
    state = "unclear"
    if outside - sure > math.log(limit):
        state = "worse"
    elif outside + likely <= math.log(limit):
        state = "good"
    return Measure(name, first, second, math.exp(difference - sure), math.exp(difference + likely), limit, state)


def tokens_of(figures: Both) -> tuple[float | None, float | None]:
    """Lengths are kept as one more, since there is no logarithm of 0."""
    return figures.stable.typical_tokens, figures.canary.typical_tokens


def share(count: int, requests: int) -> float | None:
    return count / requests if requests else None


def share_bounds(count: int, requests: int, wrong: float) -> tuple[float, float]:
    """Between which the true share is, at all times at once but for `wrong` of all sequences. 0 of 0 -> 0 to 1.

    All p at which p^k (1-p)^(n-k) is at least `wrong` times the mixture B(a + k, b + n - k) / B(a, b).
    """
    if not requests:
        return 0.0, 1.0
    a, b = PRIOR
    others = requests - count
    least = math.log(wrong) + log_beta(a + count, b + others) - log_beta(a, b)

    def inside(p: float) -> bool:
        return count * math.log(p) + others * math.log1p(-p) >= least

    peak = min(max(count / requests, 1e-12), 1 - 1e-12)
    low = 0.0 if not count else edge(inside, peak, 1e-300)
    high = 1.0 if not others else edge(inside, peak, 1 - 1e-15)
    return low, high


def edge(inside: Callable[[float], bool], within: float, beyond: float) -> float:
    """The last place that is inside on the way from `within` to `beyond`, from the outer side."""
    for _ in range(STEPS):
        middle = (within + beyond) / 2
        if inside(middle):
            within = middle
        else:
            beyond = middle
    return beyond


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def mean_bound(logs: Logs, wrong: float) -> float:
    """How far the true mean may be from the measured one, at all times at once but for `wrong` of all sequences."""
    n = logs.count
    weight = (-2 * math.log(wrong) + math.log(-2 * math.log(wrong) + 1)) / TIGHTEST_AT
    spread = n * weight + 1
    return math.sqrt(logs.variance * 2 * spread / (n * n * weight) * math.log(math.sqrt(spread) / wrong))


def said(measure: Measure) -> str:
    """first token, seconds: 0.31 before, 0.84 in the canary (ratio 2.10 to 3.02, limit 1.5)."""
    stable, canary = (f"{value:.4g}" if value is not None else "none" for value in (measure.stable, measure.canary))
    what = "difference" if measure.name in ("errors", "refusals") else "ratio"
    bounds = f"{what} {measure.low:.3g} to {measure.high:.3g}, " if measure.low is not None else ""
    return f"{measure.name}: {stable} before, {canary} in the canary ({bounds}limit {measure.limit:g})"
