"""The arithmetic of limits: a window, beside a naive twin; days and months."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.windows import Budget, Calendar, Window, day_ends_in, month_ends_in

STEPS = st.lists(
    st.tuples(st.floats(0, 70, allow_nan=False) | st.floats(0, 0.3), st.integers(0, 20)), min_size=1, max_size=120
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@given(STEPS, st.floats(0, 1e7))
def test_a_window_counts_what_a_naive_twin_counts(steps: list[tuple[float, int]], start: float) -> None:
    window, now = Window(), start
    added: list[tuple[int, int]] = []
    for pause_s, count in steps:
        now += pause_s
        window.add(count, now)
        added.append((int(now * 10), count))
        assert window.total(now) == sum(count for slot, count in added if slot >= int(now * 10) - 600)


@given(STEPS, st.integers(1, 50), st.floats(0, 1e7))
def test_no_sixty_seconds_ever_hold_more_than_is_admitted(
    steps: list[tuple[float, int]], limit: int, start: float
) -> None:
    window, now = Window(), start
    admitted: list[tuple[float, int]] = []
    for pause_s, count in steps:
        now += pause_s
        if window.total(now) + count <= limit:
            window.add(count, now)
            admitted.append((now, count))
    for end, _ in admitted:
        assert sum(count for moment, count in admitted if end - 60 < moment <= end) <= limit


@given(STEPS, st.integers(0, 100))
def test_it_falls_when_it_said_it_would_and_not_before(steps: list[tuple[float, int]], most: int) -> None:
    window, now = Window(), 0.0
    for pause_s, count in steps:
        now += pause_s
        window.add(count, now)
    wait_s = window.falls_to(most, now)
    assert wait_s <= 60.1 + 1e-6
    if wait_s > 0.01:
        assert window.total(now + wait_s - 0.005) > most
    assert window.total(now + wait_s + 0.005) <= most
    assert window.total(now + 60.1 + 0.005) == 0


def test_a_window_that_is_filled_for_hours_keeps_601_slots() -> None:
    window = Window()
    for tenth in range(100_000):
        window.add(1, tenth / 10)
    assert len(window._slots) <= 2 * 601
    assert window.total(9999.9) == 601


def test_a_budget_begins_anew_with_the_day_and_with_the_month() -> None:
    budget, calendar = Budget(), Calendar()
    budget.add(7, calendar.turn_to(at("2026-11-29 23:59:59")))
    budget.add(5, calendar.turn_to(at("2026-11-30 00:00:01")))
    assert (budget.in_day(calendar), budget.in_month(calendar)) == (5, 12)
    calendar.turn_to(at("2026-12-01 00:00:00"))
    assert (budget.in_day(calendar), budget.in_month(calendar)) == (0, 0)


def test_a_clock_set_back_turns_the_calendar_back() -> None:
    calendar = Calendar()
    assert calendar.turn_to(at("2026-11-22 10:00:00")).day == "2026-11-22"
    assert calendar.turn_to(at("2026-11-19 10:00:00")).day == "2026-11-19"


@pytest.mark.parametrize(
    ("moment", "day_s", "month_s"),
    [("2026-11-30 23:59:30", 30, 30), ("2026-12-31 00:00:00", 86400, 86400), ("2028-02-28 00:00:00", 86400, 172800)],
)
def test_a_day_and_a_month_end_at_midnight_utc(moment: str, day_s: float, month_s: float) -> None:
    assert day_ends_in(at(moment)) == day_s
    assert month_ends_in(at(moment)) == month_s
