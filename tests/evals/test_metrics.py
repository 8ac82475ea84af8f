"""Scores and intervals: beside hand-computed numbers, naive twins and whole enumerations."""

import itertools
import math
from collections.abc import Sequence
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.data.metrics import squad_metrics

from evals.metrics import (
    bootstrap,
    exact_match,
    f1,
    interval,
    last_number,
    normalized,
    number,
    paired_bootstrap,
    quantile,
    sign_test,
    token_f1,
    verbatim,
    wilson,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S., a country.", "us country"),
        ("An apple; the (red) one", "apple red one"),
        ("theatre and", "theatre and"),
        ("a-b", "ab"),  # punctuation goes first: no article is left
        ("A b", "b"),
        ("¿Qué? 1,200…", "¿qué 1200…"),  # ASCII punctuation alone
        ("", ""),
        ("the.", ""),
    ],
)
def test_normalization_is_squads(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "a cat", 2 / 3),  # precision 1/2, recall 1
        ("Paris, France", "paris", 2 / 3),
        ("dog dog dog", "dog cat", 2 / 5),  # a word counts as often as both have it: 1 of 3, 1 of 2
        ("cat dog", "dog cat", 1),
        ("no", "yes", 0),
        ("the", "a", 1),
        ("", "cat", 0),
        ("cat", "the", 0),
    ],
)
def test_f1_of_words_counted_by_hand(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)
    assert token_f1(reference, answer) == pytest.approx(expected)


def test_the_best_reference_counts() -> None:
    assert f1("cat", ["dog", "a cat sat", "the cat"]) == 1
    assert exact_match("The cat!", ["dog", "cat"]) == 1
    assert exact_match("cats", ["dog", "cat"]) == 0
    assert verbatim("Cat", ["cat"]) == 0
    assert [score("cat", []) for score in (f1, exact_match, verbatim, number)] == [0, 0, 0, 0]


WORDS = st.lists(st.sampled_from(["a", "The", "an", "cat", "Cat.", "dog", "1,200", "é", "-", "theatre"]), max_size=8)


@given(WORDS.map(" ".join) | st.text(), WORDS.map(" ".join) | st.text())
def test_scores_are_those_of_transformers_copy_of_squads_script(answer: str, reference: str) -> None:
    assert normalized(answer) == squad_metrics.normalize_answer(answer)  # type: ignore[no-untyped-call]
    same = squad_metrics.compute_exact(reference, answer)  # type: ignore[no-untyped-call]
    assert exact_match(answer, [reference]) == same
    theirs = squad_metrics.compute_f1(reference, answer)  # type: ignore[no-untyped-call]
    assert token_f1(answer, reference) == pytest.approx(theirs)


@given(st.text(), st.text())
def test_scores_hang_together(answer: str, reference: str) -> None:
    score = token_f1(answer, reference)
    assert 0 <= score <= 1
    assert score == pytest.approx(token_f1(reference, answer))
    if exact_match(answer, [reference]):
        assert score == 1
    if verbatim(answer, [reference]):
        assert exact_match(answer, [reference])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16 - 3 = 13. #### 18", 18),
        ("#### 1,200 dollars, not 5", 1200),
        ("it is $70,000.50.", 70000.5),
        ("first 3, then -4", -4),
        ("#### none", None),
        ("I do not know", None),
        ("#### 5 and then #### 6", 6),
        ("#### .5", 0.5),
        ("so $.75 is left", 0.75),
        ("it is -.5", -0.5),
        ("it is 10-3", 3),
        ("#### 10-3", 10),
        ("f(2)-7", 7),
        ("x=-7", -7),
        ("it is -$5", -5),
        ("it is \u22124", -4),
        ("version 3.5.2", 2),
        ("It ends.5", 5),
    ],
)
def test_the_number_of_a_worked_answer(text: str, expected: float | None) -> None:
    assert last_number(text) == expected


def test_numbers_are_equal_however_they_are_written() -> None:
    assert number("so it is #### $1,200.00", ["much text #### 1200"]) == 1
    assert number("1201", ["#### 1200"]) == 0
    assert number("no idea", ["no idea"]) == 0


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # By hand from (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964.
    [(8, 10, 0.49016, 0.94332), (0, 10, 0, 0.27753), (10, 10, 0.72247, 1), (95, 100, 0.88825, 0.97846)],
)
def test_wilsons_interval_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_where_the_score_test_would_not_reject(of: tuple[int, int]) -> None:
    successes, n = of
    z = 1.959963984540054
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(successes / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-6)


def test_nothing_is_known_of_nothing() -> None:
    assert wilson(0, 0) == bootstrap([]) == (0, 1)
    with pytest.raises(ValueError, match="no items"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="longer"):
        paired_bootstrap([1], [1, 0])


def enumerated(scores: Sequence[float]) -> list[float]:
    """The mean of every possible resample."""
    return sorted(fmean(draw) for draw in itertools.product(scores, repeat=len(scores)))


@pytest.mark.parametrize("scores", [[0.0, 0.3, 0.5, 0.9, 1.0], [0.1, 0.2, 0.4, 0.8], [0.5, 0.5, 0.7, 1.0, 1.0]])
def test_the_bootstrap_is_near_the_whole_enumeration(scores: list[float]) -> None:
    every = enumerated(scores)
    low, high = bootstrap(scores, resamples=20_000)
    assert low == pytest.approx(quantile(every, 0.025), abs=0.03)
    assert high == pytest.approx(quantile(every, 0.975), abs=0.03)


def test_the_bootstrap_of_a_large_sample_is_nearly_normal() -> None:
    rng = Random(7)
    scores = [rng.random() for _ in range(400)]
    half = 1.96 * math.sqrt(sum((score - fmean(scores)) ** 2 for score in scores)) / len(scores)
    assert bootstrap(scores) == pytest.approx((fmean(scores) - half, fmean(scores) + half), abs=0.003)


@given(SCORES, st.integers(0, 5))
def test_an_interval_repeats_with_its_seed_and_stays_inside(scores: list[float], seed: int) -> None:
    found = bootstrap(scores, seed, resamples=50)
    assert found == bootstrap(scores, seed, resamples=50)
    assert min(scores) - 1e-9 <= found.low <= found.high <= max(scores) + 1e-9


def test_proportions_get_wilsons_interval_and_means_the_bootstraps() -> None:
    assert interval([1, 0, 1, 1]) == wilson(3, 4)
    assert interval([1, 0, 0.5, 1]) == bootstrap([1, 0, 0.5, 1])


def test_two_systems_on_three_items_by_hand() -> None:
    """Differences 1, 0, 0: 8 of 27 resamples have none of the one, so p is 2 * 8/27."""
    found = paired_bootstrap([0, 1, 0], [1, 1, 0], resamples=20_000)
    assert found.mean == pytest.approx(1 / 3)
    assert found.interval == (0, 1)  # all three of the one: 1/27 of the resamples
    assert found.p == pytest.approx(16 / 27, abs=0.02)


def test_a_difference_that_every_item_shows_is_certain_as_far_as_resampling_can_tell() -> None:
    found = paired_bootstrap([1] * 50, [0] * 50, resamples=999)
    assert (found.mean, found.interval, found.p) == (-1, (-1, -1), 2 / 1000)
    same = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (same.mean, same.interval, same.p) == (0, (0, 0), 1)


def test_pairs_tell_more_than_two_separate_intervals() -> None:
    """18 of 200 items turn from wrong to right and none back: sure as pairs, not sure from the proportions alone."""
    before = [1.0] * 100 + [0.0] * 100
    after = [1.0] * 118 + [0.0] * 82
    assert wilson(100, 200).high > wilson(118, 200).low
    assert paired_bootstrap(before, after).interval.low > 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_difference_turns_its_sign_with_the_order(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = paired_bootstrap(first, second, resamples=60), paired_bootstrap(second, first, resamples=60)
    assert there.mean == pytest.approx(-back.mean)
    assert there.interval == pytest.approx((-back.interval.high, -back.interval.low))
    assert there.p == pytest.approx(back.p)


@pytest.mark.parametrize("ordered", [[3.0], [1.0, 2.0], [0.0, 1.0, 5.0, 9.0]])
def test_quantiles_lie_between_the_nearest(ordered: list[float]) -> None:
    for share in (0, 0.025, 0.5, 0.77, 1):
        place = share * (len(ordered) - 1)
        naive = sum(value * max(0.0, 1 - abs(place - index)) for index, value in enumerate(ordered))
        assert quantile(ordered, share) == pytest.approx(naive)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (0, 1, 1.0), (0, 4, 0.125), (5, 0, 0.0625), (0, 6, 0.03125), (3, 3, 1.0), (1, 9, 22 / 1024)],
)
def test_the_sign_test_counts_the_items_that_differ(better: int, worse: int, p: float) -> None:
    """By hand: twice the binomial tail, 1 at most."""
    first = [0.0] * better + [1.0] * worse + [1.0] * 50
    second = [1.0] * better + [0.0] * worse + [1.0] * 50
    assert sign_test(first, second) == pytest.approx(p)
