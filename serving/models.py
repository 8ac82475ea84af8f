"""How served models are described: OpenAI's list of models, or Anthropic's for its clients."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple


class Known(NamedTuple):
    """Of a served model: the registered version, and its composition, a word that is another as soon as what makes
    the answers is."""

    version: str | None = None
    composition: str | None = None


def listed(models: Mapping[str, Known], created: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The answer to GET /v1/models. `created` is in seconds since 1970."""
    names = list(models)
    if b"anthropic-version" not in headers:
        return {"object": "list", "data": [described(name, created, known) for name, known in models.items()]}
    data = [described_for_anthropic(name, created) for name in names]
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
    return {"data": data, **ends, "has_more": False}


def described(name: str, created: int, known: Known = Known()) -> dict[str, Any]:
    said = {"id": name, "object": "model", "created": created, "owned_by": "penstock"}
    return said | {word: value for word, value in known._asdict().items() if value}


def described_for_anthropic(name: str, created: int, known: Known = Known()) -> dict[str, Any]:
    """Anthropic's clients know of no more."""
    stamp = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": stamp, "lifecycle": "active"}
