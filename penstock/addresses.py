"""Addresses behind which replicas come and go: `dns://HOST:PORT`, `kubernetes://NAMESPACE/SERVICE:PORT`."""

import re
from dataclasses import dataclass

# RFC 1123 and, for Kubernetes' names, its own "Object Names and IDs".
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
HOST_LABEL = r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
DNS = re.compile(rf"dns://(?P<host>{HOST_LABEL}(\.{HOST_LABEL})*\.?):(?P<port>[0-9]+)/?")
KUBERNETES = re.compile(rf"kubernetes://(?P<namespace>{LABEL})/(?P<service>{LABEL}):(?P<port>{LABEL})/?")


@dataclass(frozen=True)
class DnsName:
    """Every address of `host` is a replica that listens on `port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"dns://{self.host}:{self.port}"


@dataclass(frozen=True)
class KubernetesService:
    """Every ready pod behind `service` is a replica. `port`: the one that pods listen on, or its name there."""

    namespace: str
    service: str
    port: int | str

    def __str__(self) -> str:
        return f"kubernetes://{self.namespace}/{self.service}:{self.port}"


def is_discovered(url: str) -> bool:
    return url.startswith(("dns:", "kubernetes:"))


def parse(url: str) -> DnsName | KubernetesService:
    """Raises ValueError with what to write instead."""
    if found := DNS.fullmatch(url):
        return DnsName(found["host"], port_number(found["port"], url))
    if found := KUBERNETES.fullmatch(url):
        port = port_number(found["port"], url) if found["port"].isdecimal() else found["port"]
        return KubernetesService(found["namespace"], found["service"], port)
    shape = "dns://HOST:PORT" if url.startswith("dns:") else "kubernetes://NAMESPACE/SERVICE:PORT"
    raise ValueError(f"{url!r} is no address: write {shape}")


def why_not(url: str) -> str | None:
    """What is wrong with an address for which `is_discovered` holds, None if nothing is."""
    try:
        parse(url)
    except ValueError as error:
        return str(error)
    return None


def port_number(digits: str, url: str) -> int:
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise ValueError(f"{url!r}: a port is a number from 1 to 65535")
    return int(digits)


def base_url(address: str, port: int, scheme: str = "http") -> str:
    """("10.0.0.7", 8000) -> "http://10.0.0.7:8000"; an IPv6 address gets its brackets."""
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
