"""Scores of single answers, and what a set of scores says: pure functions, every number between 0 and 1.

Exact match and token F1 are those of SQuAD 1.1 (Rajpurkar et al. 2016, section 6.1; its evaluation script: lower
case, then no ASCII punctuation, then no articles, then single spaces; the best of several reference answers counts).
Intervals are Wilson's for a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4) and the percentile bootstrap
for a mean (Efron 1979). Two systems are compared on the same items by resampling the pairs (Koehn 2004).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import NormalDist, fmean
from typing import NamedTuple

RESAMPLES = 4000
CONFIDENCE = 0.95
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|(?<!\w)\.\d+)")  # in 10-3 the 3 has no sign


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """`mean`: how much better the second is. `p`: two-sided, how often resampling turns the sign."""

    mean: float
    interval: Interval
    p: float


def normalized(text: str) -> str:
    """`The  U.S., a country.` -> `us country`."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def verbatim(answer: str, references: Sequence[str]) -> float:
    """To the last character."""
    return float(answer in references)


def exact_match(answer: str, references: Sequence[str]) -> float:
    return float(normalized(answer) in map(normalized, references))


def f1(answer: str, references: Sequence[str]) -> float:
    return max((token_f1(answer, reference) for reference in references), default=0.0)


def token_f1(answer: str, reference: str) -> float:
    """`the cat sat`, `a cat` -> 2/3. Where nothing is left of either it is 1 if nothing is left of both, as in
    SQuAD 2.0: an empty reference is an admitted ignorance."""
    said, wanted = normalized(answer).split(), normalized(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def contains(answer: str, references: Sequence[str]) -> float:
    """Whether one of them stands in the answer, in upper or lower case and with any apostrophe, as in a refusal."""
    said = answer.casefold().replace("\u2019", "'")
    return float(any(reference.casefold() in said for reference in references))


def number(answer: str, references: Sequence[str]) -> float:
    """Equal numbers, however they are written: `... so #### $1,200.00` equals `1200`. What follows the last `####`
    counts, as in GSM8K; without one the last number of the answer does."""
    said = last_number(answer)
    return float(said is not None and any(said == last_number(reference) for reference in references))


def last_number(text: str) -> float | None:
    _, marked, tail = text.rpartition("####")
    found = NUMBER.findall(tail.replace("\u2212", "-"))
    if not found:
        return None
    return float((found[0] if marked else found[-1]).replace(",", "").replace("$", ""))


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "verbatim": verbatim,
    "exact": exact_match,
    "f1": f1,
    "number": number,
    "contains": contains,
}


def interval(scores: Sequence[float], seed: int = 0) -> Interval:
    """Of the mean: Wilson's where every score is 0 or 1, otherwise bootstrapped."""
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores, seed)


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """8 of 10 -> 0.490 to 0.943. Nothing is known of nothing: 0 to 1."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / n, z * z / n
    center = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if successes == 0 else center - half
    return Interval(low, 1.0 if successes == n else center + half)


def bootstrap(
    scores: Sequence[float], seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """The middle `confidence` of the means of as many scores drawn with replacement."""
    if not scores:
        return Interval(0.0, 1.0)
    return middle(means(scores, seed, resamples), confidence)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Difference:
    """`first[i]` and `second[i]` are of the same item. Raises ValueError if they cannot be."""
    differences = [after - before for before, after in zip(first, second, strict=True)]
    if not differences:
        raise ValueError("no items to compare")
    drawn = means(differences, seed, resamples)
    # One is added to both, so that no finite number of resamples claims certainty (Davison and Hinkley 1997, 4.2).
    not_better = (sum(mean <= 0 for mean in drawn) + 1) / (resamples + 1)
    not_worse = (sum(mean >= 0 for mean in drawn) + 1) / (resamples + 1)
    return Difference(fmean(differences), middle(drawn, confidence), min(1.0, 2 * min(not_better, not_worse)))


def sign_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided and exact: how often so many of the items that differ would differ in one direction by chance. For
    right and wrong it is McNemar's test with the binomial distribution. 4 worse, none better -> 0.125."""
    better = sum(after > before for before, after in zip(first, second, strict=True))
    worse = sum(after < before for before, after in zip(first, second, strict=True))
    n = better + worse
    tail: float = sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)


def means(scores: Sequence[float], seed: int, resamples: int) -> list[float]:
    """Sorted. The sums are exact, so that equal draws are equal however they are ordered."""
    draw = Random(seed).choices
    return sorted(math.fsum(draw(scores, k=len(scores))) / len(scores) for _ in range(resamples))


def middle(ordered: Sequence[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    return Interval(quantile(ordered, tail), quantile(ordered, 1 - tail))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest, linearly (Hyndman and Fan 1996, definition 7)."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
