"""The judge of canaries: beside naive twins, and by simulated traffic that is looked at again and again."""

import math
from random import Random
from statistics import fmean, variance

import orjson
import pytest

from evals.canary import Decision, judge, mean_bound, share_bounds
from penstock.errors import BadRequest
from registry.canaries import Rules
from registry.canary_figures import Both, Figures, Logs

RULES = Rules(least_s=0, longest_s=1e6)
TIMES = 9
"""How many requests of the stable arm come for one of the canary."""
USUAL = {"errors": 0.02, "seconds": 0.3, "tokens": 80.0}
Kind = dict[str, float]


def note(figures: Figures, dice: Random, errors: float, seconds: float, tokens: float) -> None:
    figures.requests += 1
    if dice.random() < errors:
        figures.errors += 1
        return
    figures.first.note(dice.lognormvariate(math.log(seconds), 0.8))
    figures.whole.note(dice.expovariate(1 / (10 * seconds)) + 0.01)
    figures.length.note(1 + dice.expovariate(1 / tokens))


def traffic(seed: int, requests: int, stable: Kind, canary: Kind, both: Both | None = None) -> Both:
    """`requests` of the canary, and so many more of the other."""
    dice, both = Random(seed), both or Both()
    for _ in range(requests):
        note(both.canary, dice, **USUAL | canary)
        for _ in range(TIMES):
            note(both.stable, dice, **USUAL | stable)
    return both


def decided(seed: int, most: int, stable: Kind, canary: Kind, look_every: int = 20) -> Decision:
    """In the end, or by the first look at which anything is."""
    both = Both()
    for count in range(0, most, look_every):
        traffic(seed * most + count, look_every, stable, canary, both)
        decision = judge(both, RULES, 0).decision
        if decision != "wait":
            return decision
    return "wait"


def share_of(decision: Decision, runs: int, most: int, canary: Kind, stable: Kind | None = None) -> float:
    return fmean(decided(seed, most, stable or {}, canary) == decision for seed in range(runs))


def test_an_equal_version_is_nearly_never_turned_back_however_often_it_is_looked_at() -> None:
    decisions = [decided(seed, 1000, {"errors": 0.01}, {"errors": 0.01}, look_every=10) for seed in range(80)]
    assert decisions.count("back") / 80 < 0.05
    assert decisions.count("on") / 80 > 0.5


def test_three_times_the_errors_are_caught_and_not_let_pass() -> None:
    decisions = [decided(seed, 2000, {}, {"errors": 0.06}) for seed in range(30)]
    assert decisions.count("back") >= 28
    assert "on" not in decisions


@pytest.mark.parametrize(
    ("worse", "within"),
    [({"seconds": 0.9}, 300), ({"tokens": 800.0}, 300), ({"tokens": 8.0}, 300), ({"errors": 0.2}, 300)],
)
def test_what_is_much_worse_goes_back_soon(worse: Kind, within: int) -> None:
    assert share_of("back", 20, within, worse) == 1


@pytest.mark.parametrize(
    ("stable", "canary"), [({}, {"errors": 0.045}), ({}, {"seconds": 0.46}), ({}, {"tokens": 165.0})]
)
def test_what_is_just_beyond_a_limit_does_not_pass_by_chance(stable: Kind, canary: Kind) -> None:
    assert share_of("on", 40, 1000, canary, stable) <= 0.05


def test_errors_of_all_requests_end_it_after_a_few() -> None:
    both = traffic(1, 8, {"errors": 0.0}, {"errors": 1.0})
    verdict = judge(both, RULES, 0)
    assert verdict.decision == "back"
    assert verdict.reasons[0].startswith("errors: 0 before, 1 in the canary (difference ")


def test_refusals_by_its_engine_alone_turn_a_version_back() -> None:
    both = traffic(1, 40, {}, {})
    both.canary.refused = 30
    (reason,) = judge(both, RULES, 0).reasons
    assert reason.startswith("refusals: 0 before, 0.75 in the canary")


def test_it_goes_on_only_after_enough_requests_and_time_and_says_what_is_missing() -> None:
    both = traffic(3, 1000, {"errors": 0.0}, {"errors": 0.0})
    rules = Rules(least_requests=1100, least_s=60)
    assert judge(both, rules, 59).reasons == ["1000 of 1100 requests", "59 of 60 s"]
    verdict = judge(both, Rules(least_requests=1000, least_s=60), 60)
    assert verdict.decision == "on"
    assert [measure.state for measure in verdict.measures] == ["good"] * 5
    assert len(verdict.reasons) == 5


def test_what_cannot_be_told_in_the_longest_time_goes_back() -> None:
    both = traffic(3, 30, {}, {})
    rules = Rules(longest_s=600)
    assert judge(both, rules, 599).decision == "wait"
    verdict = judge(both, rules, 600)
    assert verdict.decision == "back"
    assert verdict.reasons[:2] == ["too little traffic to tell in 600 s", "30 of 200 requests"]
    assert judge(Both(), rules, 600).decision == "back"
    assert judge(Both(), rules, 0).decision == "wait"


def test_a_model_that_generates_nothing_is_judged_by_what_it_has() -> None:
    both = traffic(5, 600, {"errors": 0.0}, {"errors": 0.0})
    for arm in (both.stable, both.canary):
        arm.first, arm.length = Logs(), Logs()
    verdict = judge(both, RULES, 0)
    assert verdict.decision == "on"
    assert [measure.state for measure in verdict.measures] == ["good", "good", "unmeasured", "good", "unmeasured"]


def test_a_report_is_json_at_every_moment() -> None:
    for requests in (0, 1, 30, 300):
        report = judge(traffic(7, requests, {}, {}), RULES, 1.23).report()
        assert orjson.loads(orjson.dumps(report)) == report


def test_sums_of_logarithms_are_those_of_all_measurements() -> None:
    dice = Random(2)
    values = [dice.lognormvariate(2, 1) for _ in range(500)]
    logs = Logs()
    for value in values:
        logs.note(value)
    assert logs.mean == pytest.approx(fmean(map(math.log, values)))
    assert logs.variance == pytest.approx(variance(map(math.log, values)))
    assert logs.typical == pytest.approx(math.exp(fmean(map(math.log, values))))


def test_a_shares_bounds_are_where_its_likelihood_is() -> None:
    """A naive twin: the likelihood of every share, beside the mixture integrated by sums."""
    grid = [(step + 0.5) / 20_000 for step in range(20_000)]
    for count, requests in ((0, 50), (3, 40), (40, 40), (9, 10)):
        weights = [p**-0.5 * (1 - p) ** 8.5 for p in grid]
        likelihoods = [p**count * (1 - p) ** (requests - count) for p in grid]
        mixture = sum(map(float.__mul__, weights, likelihoods)) / sum(weights)
        inside = [p for p, likelihood in zip(grid, likelihoods, strict=True) if likelihood >= 0.01 * mixture]
        low, high = share_bounds(count, requests, 0.01)
        assert low == pytest.approx(inside[0], abs=3e-4, rel=0.02)
        assert high == pytest.approx(inside[-1], abs=3e-4, rel=0.02)


def test_bounds_hold_at_all_times_at_once() -> None:
    """Looked at after every single measurement, they miss the truth no more often than was said."""
    missed_shares = missed_means = 0
    for seed in range(200):
        dice, logs, count = Random(seed), Logs(), 0
        missed_share = missed_mean = False
        for n in range(1, 400):
            count += dice.random() < 0.1
            logs.note(dice.lognormvariate(1, 1))
            low, high = share_bounds(count, n, 0.1) if n % 5 == 0 else (0.0, 1.0)
            missed_share |= not low <= 0.1 <= high
            missed_mean |= n >= 20 and abs(logs.mean - 1) > mean_bound(logs, 0.1)
        missed_shares += missed_share
        missed_means += missed_mean
    assert missed_shares / 200 <= 0.1
    assert missed_means / 200 <= 0.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"least_request": 5}, "no rule 'least_request', did you mean 'least_requests'"),
        ({"least_requests": 2.5}, "least_requests must be a whole number from 20 to"),
        ({"least_requests": True}, "least_requests must be a whole number"),
        ({"errors_margin": math.nan}, "errors_margin must be a number from"),
        ({"longest_s": math.inf}, "longest_s must be a number"),
        ({"latency_ratio": 0.5}, "latency_ratio must be a number from 1.01 to 1000"),
        ({"least_s": 100, "longest_s": 50}, "longest_s \\(50\\) must be at least least_s \\(100\\)"),
    ],
)
def test_rules_that_cannot_be_are_refused(given: Kind, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        Rules.of(given)
