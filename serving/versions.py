"""Which versions of registered models are served."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.config import Config


@dataclass(frozen=True, slots=True)
class Versions:
    """NAME@NUMBER of what each engine started here serves (`engines`), and of each served model's adapter
    (`adapters`), which is the name to ask for it, too. What the registry does not know is not in it. `canaries` are
    those of served models, as `Canary.described` tells of them, where their versions can be asked. `cold` are the
    models whose adapters engines elsewhere have yet to be given for the first time since the start."""

    engines: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    canaries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cold: Collection[str] = ()

    def of_models(self, config: Config) -> dict[str, str]:
        """Each served model's."""
        found = {
            name: self.adapters.get(name) if model.adapter else self.engines.get(model.engine)
            for name, model in config.models.items()
        }
        return {name: version for name, version in found.items() if version}
