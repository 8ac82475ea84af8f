"""Follows a Kubernetes service as pods join and leave it.

Its EndpointSlices are listed once and then watched, with the pod's own service account. The API server's part of it:
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
from pydantic import ValidationError

from engine.endpoint_slices import Event, Gone, SliceList, Slices, Status, refusal
from penstock.addresses import KubernetesService, base_url
from penstock.errors import EngineError, EngineUnavailable, StartError

log = logging.getLogger(__name__)

Apply = Callable[[frozenset[str]], None]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The server ends a watch after this long; the next goes on where it ended, with the token read anew.
WATCH_S = 60
LIST_TIMEOUT_S = 15.0
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class Cluster:
    """The API server at `url`; `folder` has the service account's `token` and `ca.crt`, which change while we run."""

    url: str
    folder: Path = SERVICE_ACCOUNT

    @classmethod
    def of_pod(cls, environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Self:
        """The cluster that this process runs in. Raises StartError where it runs in none."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise StartError(
                "kubernetes:// is for pods, and this is none (KUBERNETES_SERVICE_HOST is not set): "
                "list the servers with http:// or give a name with dns://"
            )
        for name in ("token", "ca.crt"):
            if not (folder / name).is_file():
                raise StartError(f"{folder / name} is not there: set automountServiceAccountToken: true for the pod")
        return cls(base_url(host, int(port), "https"), folder)

    def client(self) -> httpx2.AsyncClient:
        """Raises OSError where token or certificate cannot be read."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        # Python 3.13 is strict by default, and many clusters' own CAs lack the extensions that it asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        token = (self.folder / "token").read_text(encoding="utf-8").strip()
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        return httpx2.AsyncClient(
            base_url=self.url, headers=headers, verify=context, timeout=LIST_TIMEOUT_S, trust_env=False
        )


class Endpoints:
    """Follows one service. An API server that is down takes no engine away: the last endpoints known stay."""

    def __init__(self, cluster: Cluster, service: KubernetesService, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.cluster = cluster
        self.service = service
        self.first_wait_s = first_wait_s
        self._slices = Slices()
        self._told: frozenset[str] | None = None
        self._wait_s = first_wait_s
        self._warned: set[str] = set()

    async def watch(self, apply: Apply) -> None:
        """Calls `apply` with all base URLs after the first list, an empty set too, and after each change."""
        while True:
            try:
                await self._list_and_watch(apply)
            except Gone:
                self._slices.version = None
            except (EngineError, ValidationError, httpx2.HTTPError, OSError) as error:
                self._slices.version = None  # what was missed meanwhile is only in a new list
                self._warn(explained(error))
                self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            await asyncio.sleep(self._wait_s * random.uniform(0.5, 1))  # not all gateways at once

    async def _list_and_watch(self, apply: Apply) -> None:
        """Lists if need be, then goes along with one watch until the server ends it."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.service.namespace}/endpointslices"
        query = {"labelSelector": f"kubernetes.io/service-name={self.service.service}"}
        async with self.cluster.client() as client:
            if self._slices.version is None:
                answer = await client.get(path, params=query)
                self._slices.listed(SliceList.model_validate_json(accepted(answer)))
                self._tell(apply)
            query |= {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
            query |= {"resourceVersion": str(self._slices.version)}
            # A connection that died without a word is noticed when even the end of the watch does not come.
            timeout = httpx2.Timeout(LIST_TIMEOUT_S, read=WATCH_S + LIST_TIMEOUT_S)
            async with client.stream("GET", path, params=query, timeout=timeout) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    accepted(answer)
                await self._go_along(answer, apply)

    async def _go_along(self, answer: httpx2.Response, apply: Apply) -> None:
        rest = b""
        async for piece in answer.aiter_bytes():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                self._slices.changed(Event.model_validate_json(line))
                self._tell(apply)
            self._all_is_well()
        if rest:
            raise EngineUnavailable("the API server ended a watch in the middle of an event")
        self._all_is_well()

    def _all_is_well(self) -> None:
        self._wait_s = self.first_wait_s
        if self._told:
            self._warned.clear()

    def _tell(self, apply: Apply) -> None:
        urls = self._slices.urls(self.service.port)
        if not urls and (lack := self._slices.lack(self.service)):
            self._warn(lack)
        if urls != self._told:
            log.info("%s: %s", self.service, ", ".join(sorted(urls)) or "no pod is ready")
            self._told = urls
            apply(urls)

    def _warn(self, message: str) -> None:
        """Once, until all is well again."""
        if message not in self._warned:
            log.warning("%s: %s", self.service, message)
        self._warned.add(message)


def explained(error: Exception) -> str:
    match error:
        case EngineError():
            return error.message
        case ValidationError():
            return f"the API server's answer is not about EndpointSlices: {error.errors()[0]['msg']}"
        case _:
            return f"the API server cannot be asked: {str(error) or type(error).__name__}"


def accepted(answer: httpx2.Response) -> bytes:
    """The body. Raises Gone or EngineError unless the status is 200."""
    if answer.status_code == 200:
        return answer.content
    try:
        status = Status.model_validate_json(answer.content)
    except ValidationError:  # a proxy's page, say
        status = Status()
    raise refusal(status.model_copy(update={"code": answer.status_code}))
