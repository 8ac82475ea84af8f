"""Percentiles, spreads and what is read off Prometheus' text."""

import math

import pytest

from benchmarks.affinity import counted
from benchmarks.figures import markdown, median, percentile, ratio, spread
from benchmarks.stacks import own_shares


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2), (75, 3), (76, 4), (99, 4), (100, 4)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([3, 1, 4, 2], percent) == expected


def test_nothing_has_no_median_and_is_shown_as_such() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(median([]))
    assert spread([]) == "-"
    assert ratio(1, median([])) == "-"


def test_a_spread_shows_the_median_between_the_smallest_and_the_largest() -> None:
    assert spread([1500, 1, 2]) == "2 (1-1,500)"
    assert spread([0.5], 2) == "0.50 (0.50-0.50)"


def test_a_table_has_a_line_of_headings_and_one_for_each_row() -> None:
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_a_metrics_samples_are_added_up_over_their_labels_and_no_other_metric_is() -> None:
    page = '# TYPE hits counter\nhits_total{engine="0"} 2.0\nhits_total{engine="1"} 3.5\nhits_total 1\nhits_total_s 9\n'
    assert counted(page, "hits_total") == 6.5


def test_the_innermost_frame_is_whose_time_it_was() -> None:
    assert own_shares("main;loop;read 3\nmain;read 1\nmain 2\n") == {"read": 4, "main": 2}
