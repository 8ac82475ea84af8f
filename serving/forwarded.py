"""What of a request's headers concerns the engine: the lines that it gets, and how long the caller waits."""

import asyncio
import math
from collections.abc import Sequence

from penstock.errors import BadRequest
from serving.exchange import Exchange

FORWARDED = (b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate")
OF_ANY_CALL = (b"traceparent", b"tracestate")
DEADLINE = b"x-request-timeout-s"


def forwarded(exchange: Exchange, names: Sequence[bytes] = FORWARDED) -> bytes:
    """The header lines that the engine gets: the caller's key, cookies and the rest are not among them."""
    lines = b"x-request-id: %b\r\n" % exchange.request_id.encode()
    headers = exchange.headers
    for name in names:
        value = headers.get(name)
        if value is not None:
            lines += b"%b: %b\r\n" % (name, value)
    return lines


def deadline_of(exchange: Exchange) -> float:
    """When the caller, who has said so, no longer wants the answer, by the loop's clock: the same for a fallback.
    Raises BadRequest."""
    given = exchange.headers[DEADLINE]
    if exchange.deadline is not None:
        return exchange.deadline
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadRequest(f"{DEADLINE.decode()} must be a number of seconds, not {given.decode('latin-1')!r}")
    exchange.deadline = asyncio.get_running_loop().time() + seconds
    return exchange.deadline
