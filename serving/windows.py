"""How much there was in the last minute, on this day and in this month: the arithmetic of limits, without a clock."""

from bisect import bisect_left
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
        # Slot, count, slot, count ...: at most SLOTS + 1 of each. One list of numbers, since of ten thousand keys each
        # has two windows: small ones are found in the processor's caches, and numbers are nothing to collect.
        self._slots: list[int] = []
        self._total = 0

    def total(self, now: float) -> int:
        slots = self._slots
        last = int(now * SLOTS_PER_S) - SLOTS
        if slots and slots[0] < last:
            gone = bisect_left(range(0, len(slots), 2), last, key=slots.__getitem__) * 2
            self._total -= sum(slots[1:gone:2])
            del slots[:gone]
        return self._total

    def add(self, count: int, now: float) -> None:
        slot = int(now * SLOTS_PER_S)
        slots = self._slots
        if slots and slots[-2] == slot:
            slots[-1] += count
        else:
            self.total(now)
            slots += (slot, count)
        self._total += count

    def falls_to(self, most: int, now: float) -> float:
        """In how many seconds the total is no more than `most`, or 0, if nothing is added."""
        left = self.total(now)
        gone_at = now
        for slot, count in zip(self._slots[::2], self._slots[1::2], strict=True):
            if left <= most:
                break
            left -= count
            gone_at = (slot + SLOTS + 1) / SLOTS_PER_S
        return gone_at - now

    def empties(self, now: float) -> float:
        """In how many seconds the total is 0, if nothing is added."""
        return (self._slots[-2] + SLOTS + 1) / SLOTS_PER_S - now if self.total(now) else 0.0


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
        if self._day == calendar.day:
            self._in_day += count
            self._in_month += count
        else:
            self.set(count, self.in_month(calendar) + count, calendar)

    def set(self, in_day: int, in_month: int, calendar: Calendar) -> None:
        self._day, self._in_day = calendar.day, in_day
        self._month, self._in_month = calendar.month, in_month
