"""A canary as a served model has it: a second route, who takes it, and what is counted of both."""

from collections.abc import Mapping
from typing import Any

from engine.route import Route
from registry.canaries import Canary
from registry.canary_figures import Both
from serving.exchange import Exchange
from serving.split import takes
from serving.tally import Tally


class Trial:
    """`other` leads to the version that is tried. `both` is this process's, for all its models of the same alias."""

    def __init__(self, canary: Canary, other: Route, both: Both) -> None:
        self.canary = canary
        self.other = other
        self._canary = Tally(both.canary, canary.subject, "canary")
        self._stable = Tally(both.stable, canary.subject, "stable")

    def route(self, current: Route, exchange: Exchange, body: Mapping[str, Any]) -> Route:
        """The same for one conversation as long as the canary runs."""
        return self.other if takes(self.canary, exchange, body) else current

    def tally(self, route: Route) -> Tally:
        return self._canary if route is self.other else self._stable
