"""What Redis is told of a request: the documents that `serving/shared_limits.lua` reads."""

from collections.abc import Sequence
from typing import Any

from penstock.callers import Quota
from serving.accounts import Limit
from serving.admission import Ticket
from serving.lines import Line
from serving.spent import Spent
from serving.windows import Calendar

KEEP_DAY_S = 2 * 86400
KEEP_MONTH_S = 33 * 86400


def booking(ticket: Ticket, may_wait: bool, calendar: Calendar) -> dict[str, Any]:
    document: dict[str, Any] = {
        "ticket": ticket.id,
        "reserved": sum(ticket.estimate),
        "accounts": [
            {
                "whose": whose,
                "base": base,
                "quota": given(quota),
                "periods": [
                    {"limit": limit, "name": name, "most": most} for limit, name, most in periods(quota, calendar)
                ],
                "lasts_ms": round(lasts_s * 1000),
            }
            for whose, base, quota, lasts_s in whose_of(ticket)
        ],
    }
    line = ticket.line
    if line and line.places is not None:
        document["line"] = {
            "base": line_base(line),
            "places": line.places,
            "urgency": ticket.caller.priority,
            "first": not line.queue,
            "may_wait": may_wait,
        }
    return document


def entry(ticket: Ticket, calendar: Calendar) -> dict[str, Any]:
    """Of one that runs, or has. `told`: what Redis has said that it has counted."""
    names = [name for _, name, _ in periods(ticket.caller.quota, calendar)]
    accounts = [{"base": base, "periods": names if whose == "key" else []} for whose, base, _, _ in whose_of(ticket)]
    document: dict[str, Any] = {"ticket": ticket.id, "accounts": accounts, "told": ticket.told}
    if ticket.line and ticket.place:
        document["place"] = {"base": line_base(ticket.line), "name": ticket.place}
    return document


def memory(ticket: Ticket, known: Spent) -> dict[str, Any]:
    """What its key has used before, as the database has it."""
    day = {"name": known.day, "used": known.in_day, "keep_s": KEEP_DAY_S}
    month = {"name": known.month, "used": known.in_month, "keep_s": KEEP_MONTH_S}
    return {"base": key_base(ticket), "periods": [day, month]}


def periods(quota: Quota, calendar: Calendar) -> list[tuple[Limit, str, int]]:
    budgets: list[tuple[Limit, str, int | None]] = [
        ("day", calendar.day, quota.daily_tokens),
        ("month", calendar.month, quota.monthly_tokens),
    ]
    return [(limit, name, most) for limit, name, most in budgets if most is not None]


def whose_of(ticket: Ticket) -> Sequence[tuple[str, str, Quota, float]]:
    """Of each of its accounts: whose, its base in Redis, its limits, how long a request lasts."""
    accounts = []
    if ticket.account:
        accounts.append(("key", key_base(ticket), ticket.caller.quota, ticket.account.lasts_s))
    if ticket.line:
        accounts.append(("model", line_base(ticket.line), ticket.line.quota, ticket.line.account.lasts_s))
    return accounts


def key_base(ticket: Ticket) -> str:
    return f"penstock:key:{{{ticket.caller.id}}}"


def line_base(line: Line) -> str:
    return f"penstock:model:{{{line.name}}}"


def given(quota: Quota) -> dict[str, int]:
    limits = {"rpm": quota.rpm, "tpm": quota.tpm, "concurrent": quota.concurrent}
    return {name: limit for name, limit in limits.items() if limit is not None}
