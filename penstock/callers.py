"""Who calls, and what they may: the nouns that keys, limits, policy and usage share."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["generate", "metrics", "admin", "raw-fields", "steps", "any-media"]
"""What a key may do.

`generate`: every inference route. `metrics`: read /metrics. `admin`: the admin API. `raw-fields`: request fields that
reach into the engine, such as `chat_template` and `kv_transfer_params`. `steps`: choose a request's steps itself.
`any-media`: media URLs other than `data:`.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL_SCOPES: frozenset[Scope] = frozenset({"generate"})


@dataclass(frozen=True, slots=True)
class Quota:
    """What a key may use; None is without limit. Tokens are those of prompts and answers together."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    daily_tokens: int | None = None
    monthly_tokens: int | None = None

    @property
    def is_unlimited(self) -> bool:
        return self == UNLIMITED


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """One key's holder. `tenant` is whose prompts and answers may be shared; by default each key's own."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope] = USUAL_SCOPES
    models: frozenset[str] | None = None
    """The served models it may use; None: all."""
    quota: Quota = field(default=UNLIMITED)
    priority: int = 0
    """Higher is served first when the engines are full."""
    expires_at: float | None = None
    """Seconds since the epoch."""
    guards: str | None = None
    """The list in the configuration's `guards` that all its requests and their answers pass, whatever the model."""


LOCAL = Caller("local", "local", "local", frozenset(SCOPES) - {"admin"})
"""Whoever calls from this machine while no keys are needed."""

CONFIGURED = "config"
"""The tenant of all keys of the configuration (`gateway.keys`)."""
RESERVED_TENANTS = frozenset({CONFIGURED, LOCAL.tenant})
"""Those that no stored key can be in."""
