"""What EndpointSlices (discovery.k8s.io/v1) say about the pods behind a service.

https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from penstock.addresses import KubernetesService, base_url
from penstock.errors import EngineError


class Gone(Exception):
    """The server has forgotten the version from which a watch should have gone on: list again."""


class Metadata(BaseModel):
    name: str = ""
    resource_version: str = Field("", alias="resourceVersion")


class Conditions(BaseModel):
    ready: bool | None = None
    terminating: bool | None = None


class Target(BaseModel):
    uid: str = ""


class Endpoint(BaseModel):
    addresses: list[str] = Field(min_length=1)
    conditions: Conditions = Conditions()
    target: Target = Field(Target(), alias="targetRef")

    @property
    def is_ready(self) -> bool:
        """Not said is ready. What terminates is drained, even where it still serves, so nothing new is sent there."""
        return self.conditions.ready is not False and not self.conditions.terminating


class Port(BaseModel):
    name: str | None = None
    port: int | None = None


class EndpointSlice(BaseModel):
    metadata: Metadata
    address_type: str = Field("", alias="addressType")
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None

    def port_named(self, name: str) -> int | None:
        return next((port.port for port in self.ports or () if port.name == name), None)


class SliceList(BaseModel):
    metadata: Metadata
    items: list[EndpointSlice] | None = None


class Event(BaseModel):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: dict[str, Any]


class Status(BaseModel):
    """Why the API server refused."""

    code: int = 0
    message: str = ""


class Slices:
    """A service's slices by name, and the `version` at which they were so; None: to be listed."""

    def __init__(self) -> None:
        self.version: str | None = None
        self._by_name: dict[str, EndpointSlice] = {}

    def listed(self, answer: SliceList) -> None:
        self._by_name = {piece.metadata.name: piece for piece in answer.items or ()}
        self.version = answer.metadata.resource_version

    def changed(self, event: Event) -> None:
        """Raises Gone or EngineError when the event is an error, pydantic's ValidationError when it is none."""
        if event.type == "ERROR":
            raise refusal(Status.model_validate(event.object))
        piece = EndpointSlice.model_validate(event.object)
        if event.type in ("ADDED", "MODIFIED"):
            self._by_name[piece.metadata.name] = piece
        elif event.type == "DELETED":
            self._by_name.pop(piece.metadata.name, None)
        self.version = piece.metadata.resource_version

    def urls(self, port: int | str) -> frozenset[str]:
        """One for each ready pod: a dual-stack service's slices have each pod twice, and IPv4 is taken."""
        found: dict[str, str] = {}
        for piece in sorted(self._by_name.values(), key=lambda piece: piece.address_type):
            number = port if isinstance(port, int) else piece.port_named(port)
            for endpoint in piece.endpoints or ():
                if number and endpoint.is_ready:
                    address = endpoint.addresses[0]  # by the API's promise the others are the same endpoint's
                    found.setdefault(endpoint.target.uid or address, base_url(address, number))
        return frozenset(found.values())

    def lack(self, service: KubernetesService) -> str | None:
        """Why there may never be a URL, as far as that is no matter of waiting for a pod."""
        if not self._by_name:
            return "there is no EndpointSlice: does the service exist, with a selector?"
        names = {str(port.name) for piece in self._by_name.values() for port in piece.ports or ()}
        if isinstance(service.port, str) and service.port not in names:
            return f"no port is named {service.port}: there are {', '.join(sorted(names)) or 'none at all'}"
        return None


REMEDIES = {
    401: "The service account's token is not accepted: does the account still exist?",
    403: "Let the pod's service account get, list and watch endpointslices.discovery.k8s.io: docs/discovery.md",
    404: "This cluster has no discovery.k8s.io/v1: it needs Kubernetes 1.21 or later",
}


def refusal(status: Status) -> Gone | EngineError:
    if status.code == 410:
        return Gone()
    said = filter(None, [f"the API server answers {status.code}", status.message, REMEDIES.get(status.code)])
    return EngineError(". ".join(said))
