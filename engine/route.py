"""Where a served model's requests go."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.pool import Pool

VERSION = b"x-penstock-model-version"


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """To this pool, whose replicas know the model as `name` (None: each by its own name for what it serves).

    `version` is the registry's, NAME@NUMBER, of what answers there; None for a model that the registry does not know.
    """

    pool: Pool
    name: str | None = None
    version: str | None = None

    @property
    def marks(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers by which an answer says which version gave it."""
        return [(VERSION, self.version.encode())] if self.version else ()
