"""Where an engine's replicas are, when that is no fixed list."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from engine.kubernetes import Apply, Cluster, Endpoints
from penstock.addresses import DnsName, base_url, parse

log = logging.getLogger(__name__)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

INTERVAL_S = 5.0


async def watch(address: str, apply: Apply, interval_s: float = INTERVAL_S) -> None:
    """Calls `apply` with the base URLs of all replicas as soon as they are known and whenever they change.

    `interval_s`: between two resolutions of a name; Kubernetes tells of changes by itself. Runs until cancelled.
    Raises ValueError for an address that `why_not` refuses, StartError for `kubernetes://` outside a cluster.
    """
    place = parse(address)
    if isinstance(place, DnsName):
        await Dns(place.host, place.port, interval_s).watch(apply)
    else:
        await Endpoints(Cluster.of_pod(os.environ), place).watch(apply)


def check(address: str) -> None:
    """Raises StartError for what `watch` could never follow from here."""
    if not isinstance(parse(address), DnsName):
        Cluster.of_pod(os.environ)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system's resolver gives, IPv4 and IPv6. Raises OSError, or UnicodeError for no name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Dns:
    """The addresses of a name. A name server that is down takes no engine away: the last addresses known stay."""

    def __init__(self, host: str, port: int, interval_s: float, lookup: Lookup = resolve) -> None:
        self.host = host
        self.port = port
        self.interval_s = interval_s
        self.lookup = lookup

    async def watch(self, apply: Apply) -> None:
        known: frozenset[str] = frozenset()
        failing = False
        while True:
            found, reason = await self._urls()
            if not found and not failing:
                log.warning(
                    "%s does not resolve (%s), so %s: is the name right, and is a server behind it ready?",
                    self.host, reason, "the last addresses stay" if known else "there are no engines yet",
                )  # fmt: skip
            failing = not found
            if found and found != known:
                log.info("%s: %s", self.host, ", ".join(sorted(found)))
                known = found
                apply(known)
            await asyncio.sleep(self.interval_s)

    async def _urls(self) -> tuple[frozenset[str], str]:
        """Empty with the reason if there are none."""
        try:
            addresses = await self.lookup(self.host, self.port)
        except (OSError, UnicodeError) as error:
            return frozenset(), str(error)
        return frozenset(base_url(address, self.port) for address in addresses), "no address"
