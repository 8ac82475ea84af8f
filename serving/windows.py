"""How much there was in the last minute, on this day and in this month: the arithmetic of limits, without a clock."""

from collections import deque
from datetime import UTC, datetime, timedelta

SLOTS_PER_S = 10
SLOTS = 60 * SLOTS_PER_S


class Window:
    """Counts of the last 60 s, in slots of a tenth of a second. Times are in seconds, of a clock that never goes back.

    A slot counts until its last moment is 60 s ago, so that what the total never exceeds is exceeded in no 60 s: it
    may hold what is up to 60.1 s old.
    """

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()  # [slot, count], at most SLOTS + 1 of them
        self._total = 0

    def total(self, now: float) -> int:
        slots = self._slots
        last = int(now * SLOTS_PER_S) - SLOTS
        while slots and slots[0][0] < last:
            self._total -= slots.popleft()[1]
        return self._total

    def add(self, count: int, now: float) -> None:
        slot = int(now * SLOTS_PER_S)
        slots = self._slots
        if slots and slots[-1][0] == slot:
            slots[-1][1] += count
        else:
            self.total(now)
            slots.append([slot, count])
        self._total += count

    def falls_to(self, most: int, now: float) -> float:
        """In how many seconds the total is no more than `most`, or 0, if nothing is added."""
        left = self.total(now)
        gone_at = now
        for slot, count in self._slots:
            if left <= most:
                break
            left -= count
            gone_at = (slot + SLOTS + 1) / SLOTS_PER_S
        return gone_at - now

    def empties(self, now: float) -> float:
        """In how many seconds the total is 0, if nothing is added."""
        return (self._slots[-1][0] + SLOTS + 1) / SLOTS_PER_S - now if self.total(now) else 0.0


class Calendar:
    """The day and the month of a moment, by UTC: `2026-11-22`, `2026-11`. Times are in seconds since the epoch."""

    __slots__ = ("_begins", "_ends", "day")

    def __init__(self) -> None:
        self._begins = self._ends = 0.0
        self.day = ""

    def turn_to(self, now: float) -> "Calendar":
        if not self._begins <= now < self._ends:
            begins = midnight(now)
            self.day = begins.strftime("%Y-%m-%d")
            self._begins = begins.timestamp()
            self._ends = self._begins + timedelta(days=1).total_seconds()
        return self

    @property
    def month(self) -> str:
        return self.day[:7]


def day_ends_in(now: float) -> float:
    """Seconds until the next day."""
    return (midnight(now) + timedelta(days=1)).timestamp() - now


def month_ends_in(now: float) -> float:
    """Seconds until the next month."""
    first = midnight(now).replace(day=1)
    return (first + timedelta(days=31)).replace(day=1).timestamp() - now


def midnight(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)


class Budget:
    """Tokens of one day and of one month; another day or month begins with none."""

    __slots__ = ("_day", "_in_day", "_in_month", "_month")

    def __init__(self) -> None:
        self._day = self._month = ""
        self._in_day = self._in_month = 0

    def in_day(self, calendar: Calendar) -> int:
        return self._in_day if self._day == calendar.day else 0

    def in_month(self, calendar: Calendar) -> int:
        return self._in_month if self._month == calendar.month else 0

    def add(self, count: int, calendar: Calendar) -> None:
        day, month = self.in_day(calendar), self.in_month(calendar)
        self.set(day + count, month + count, calendar)

    def set(self, in_day: int, in_month: int, calendar: Calendar) -> None:
        self._day, self._in_day = calendar.day, in_day
        self._month, self._in_month = calendar.month, in_month
