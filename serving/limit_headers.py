"""How a key's limits stand, as OpenAI's headers tell it."""

from penstock.callers import Quota
from serving.accounts import Standing
from serving.exchange import Headers


def as_headers(quota: Quota, standing: Standing) -> Headers:
    used, reset_s, tokens, tokens_reset_s = standing
    headers: list[tuple[bytes, bytes]] = []
    if quota.rpm is not None:
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % quota.rpm),
            (b"x-ratelimit-remaining-requests", b"%d" % max(0, quota.rpm - used)),
            (b"x-ratelimit-reset-requests", as_duration(reset_s)),
        )
    if quota.tpm is not None:
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % quota.tpm),
            (b"x-ratelimit-remaining-tokens", b"%d" % max(0, quota.tpm - tokens)),
            (b"x-ratelimit-reset-tokens", as_duration(tokens_reset_s)),
        )
    return headers


def as_duration(seconds: float) -> bytes:
    """As OpenAI writes them: b"6m0s", b"7.66s", b"120ms"."""
    if seconds < 1:
        return b"%dms" % round(max(0.0, seconds) * 1000)
    if seconds < 60:
        return b"%.4gs" % seconds
    minutes, rest = divmod(seconds, 60)
    return b"%dm%.4gs" % (minutes, rest)
