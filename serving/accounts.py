"""What one key, or one model, has used and holds, and whether its limits leave room for one more request."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from penstock.callers import Quota
from serving.windows import Budget, Calendar, Window, day_ends_in, month_ends_in

Limit = Literal["requests", "tokens", "concurrent", "day", "month"]
LIMITS: tuple[Limit, ...] = get_args(Limit)
NEWEST_WEIGHT = 0.2


class Moment(NamedTuple):
    """Now: by a clock that never goes back, by the clock on the wall, and in the calendar."""

    steady: float
    wall: float
    calendar: Calendar


class Refusal(NamedTuple):
    """Which limit is reached, and in how many seconds it may be so no longer."""

    limit: Limit
    retry_s: float


class Standing(NamedTuple):
    """How far a minute's limits are used, and in how many seconds they will not be at all."""

    requests: int = 0
    requests_reset_s: float = 0.0
    tokens: int = 0
    tokens_reset_s: float = 0.0


@dataclass(slots=True)
class Account:
    """`running` and `reserved` are of requests under way: how many, and the tokens they may still come to."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    budget: Budget = field(default_factory=Budget)
    running: int = 0
    reserved: int = 0
    lasts_s: float = 0.0
    """What a request lasts, of late; 0 while none has ended."""
    known: Standing | None = None
    """What Redis said last, where that is asked."""

    def refusal(self, quota: Quota, now: Moment) -> Refusal | None:
        """The limit that one more request would break, if any."""
        at = now.steady
        if quota.rpm is not None and self.requests.total(at) >= quota.rpm:
            return Refusal("requests", self.requests.falls_to(quota.rpm - 1, at))
        if quota.tpm is not None and self.tokens.total(at) + self.reserved >= quota.tpm:
            return Refusal("tokens", self._tokens_retry_s(quota.tpm, at))
        if quota.concurrent is not None and self.running >= quota.concurrent:
            return Refusal("concurrent", self.lasts_s / max(1, quota.concurrent))
        in_day, in_month = self.budget.in_day(now.calendar), self.budget.in_month(now.calendar)
        if quota.daily_tokens is not None and in_day + self.reserved >= quota.daily_tokens:
            return Refusal("day", day_ends_in(now.wall) if in_day >= quota.daily_tokens else self.lasts_s)
        if quota.monthly_tokens is not None and in_month + self.reserved >= quota.monthly_tokens:
            return Refusal("month", month_ends_in(now.wall) if in_month >= quota.monthly_tokens else self.lasts_s)
        return None

    def _tokens_retry_s(self, tpm: int, at: float) -> float:
        """What is reserved may come to less once it has ended, which nobody knows before."""
        most = tpm - 1 - self.reserved
        falls_s = self.tokens.falls_to(max(0, most), at)
        return falls_s if most >= 0 else max(falls_s, self.lasts_s)

    def enter(self, tokens: int, now: Moment) -> None:
        self.requests.add(1, now.steady)
        self.running += 1
        self.reserved += tokens

    def count(self, tokens: int, released: int, now: Moment) -> None:
        """So many have come; `released` of those reserved are so no longer."""
        self.reserved -= released
        if tokens:
            self.tokens.add(tokens, now.steady)
            self.budget.add(tokens, now.calendar)

    def leave(self, lasted_s: float | None) -> None:
        """`lasted_s`: None for one that was never begun."""
        self.running -= 1
        if lasted_s is not None:
            self.lasts_s += (NEWEST_WEIGHT if self.lasts_s else 1) * (lasted_s - self.lasts_s)

    def standing(self, at: float) -> Standing:
        """Tokens reserved are taken to come now."""
        reset_s = 60.0 if self.reserved else self.tokens.empties(at)
        return Standing(
            self.requests.total(at), self.requests.empties(at), self.tokens.total(at) + self.reserved, reset_s
        )

    def is_idle(self, now: Moment) -> bool:
        """Whether it may be forgotten."""
        used = self.requests.total(now.steady) or self.tokens.total(now.steady) or self.running
        return not used and not self.budget.in_month(now.calendar)
