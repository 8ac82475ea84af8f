"""A Kubernetes API server as far as EndpointSlices go: TLS, tokens, list, watch, versions that are forgotten."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

Slice = dict[str, Any]
PATH = "/apis/discovery.k8s.io/v1/namespaces/serving/endpointslices"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class ApiServer:
    """`asked` has the query of each request; `refuse` is the status that all of them get. Versions count changes.

    That a version is gone is told by an event, or by the watch's own status: servers do both.
    """

    token: str
    url: str = ""
    slices: dict[str, Slice] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    refuse: int | None = None
    delay_s: float = 0
    gone_is_status: bool = False
    _events: list[bytes] = field(default_factory=list)
    _oldest: int = 0
    _endings: list[bytes] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _connections: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def watches(self) -> int:
        return sum("watch" in query for query in self.asked)

    @property
    def lists(self) -> int:
        return len(self.asked) - self.watches

    async def put(self, name: str, piece: Slice) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = piece
        await self._tell(kind, name, piece)

    async def delete(self, name: str) -> None:
        await self._tell("DELETED", name, self.slices.pop(name))

    async def bookmark(self) -> None:
        await self._tell("BOOKMARK", "", {"endpoints": None})

    async def end_watches(self, ending: bytes = LAST_CHUNK) -> None:
        """Closes every watch: after the proper end of the answer, or after other bytes."""
        async with self._changed:
            self._endings.append(ending)
            self._changed.notify_all()

    async def forget(self) -> None:
        """Ends every watch, and none can go on from a version known until now, as after a compaction."""
        await self.end_watches()
        await self.bookmark()
        self._oldest = len(self._events)

    async def _tell(self, kind: str, name: str, piece: Slice) -> None:
        async with self._changed:
            self._events.append(event(kind, named(piece, name, len(self._events) + 1)))
            self._changed.notify_all()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            going_on = True
            while going_on:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await asyncio.sleep(self.delay_s)
                going_on = await self._answer(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            self._connections.discard(task)

    async def close(self) -> None:
        left = list(self._connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may serve another request."""
        target = urlsplit(head.split()[1])
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        self.asked.append(query)
        if self.refuse or f"authorization: bearer {self.token}\r\n" not in head.lower():
            writer.write(status(self.refuse or 401))
        elif target.path != PATH or query["labelSelector"] != "kubernetes.io/service-name=vllm":
            writer.write(status(404))
        elif "watch" in query:
            return await self._watch(int(query["resourceVersion"]), writer)
        else:
            items = [named(piece, name, len(self._events)) for name, piece in self.slices.items()]
            metadata = {"resourceVersion": str(len(self._events))}
            writer.write(whole(200, {"kind": "EndpointSliceList", "metadata": metadata, "items": items or None}))
        return True

    async def _watch(self, version: int, writer: asyncio.StreamWriter) -> bool:
        if version < self._oldest and self.gone_is_status:
            writer.write(status(410))
            return True
        if version < self._oldest:
            writer.write(STREAM + chunk(event("ERROR", {"kind": "Status", "code": 410})) + LAST_CHUNK)
            return True
        writer.write(STREAM)
        endings = len(self._endings)
        async with self._changed:
            while len(self._endings) == endings:
                for line in self._events[version:]:
                    writer.write(chunk(line[:20]))  # cut in two: what comes from a socket knows no lines
                    await writer.drain()
                    writer.write(chunk(line[20:]))
                version = len(self._events)
                await self._changed.wait()
        writer.write(self._endings[endings])
        return self._endings[endings] == LAST_CHUNK


def endpoint(address: str, pod: str | None = None, **conditions: bool | None) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "name": pod, "uid": pod}} if pod else {}
    return {"addresses": [address], "conditions": conditions, **target}


def piece(*endpoints: dict[str, Any], family: str = "IPv4", **ports: int) -> Slice:
    named_ports = [{"name": name, "port": number, "protocol": "TCP"} for name, number in ports.items()]
    return {"addressType": family, "endpoints": list(endpoints) or None, "ports": named_ports or None}


def named(piece: Slice, name: str, version: int) -> Slice:
    return {**piece, "metadata": {"name": name, "resourceVersion": str(version)}}


def event(kind: str, piece: Slice) -> bytes:
    return json.dumps({"type": kind, "object": piece}).encode() + b"\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def status(code: int) -> bytes:
    return whole(code, {"kind": "Status", "code": code, "message": f"refused with {code}"})


def whole(status: int, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(data)) + data


@asynccontextmanager
async def api_server(folder: Path, token: str = "first", port: int = 0) -> AsyncIterator[ApiServer]:
    """Listens on 127.0.0.1; `folder` becomes what a pod finds of its service account, with the server's CA."""
    key_and_certificate = folder / "server.pem"
    if not key_and_certificate.exists():
        certify(folder / "ca.crt", key_and_certificate)
    (folder / "token").write_text(token)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(key_and_certificate)
    here = ApiServer(token)
    server = await asyncio.start_server(here.connected, "127.0.0.1", port, ssl=context)
    here.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        await here.close()


def certify(authority: Path, server: Path) -> None:
    """Writes a CA's certificate, and a server's key and certificate for 127.0.0.1, signed by it."""
    pytest.importorskip("cryptography", reason="no certificate can be made without the package cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
    ) -> bytes:
        now = datetime.now(UTC)
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, word)]) for word in (name, issuer)]
        built = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        built = built.add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        built = built.add_extension(address, critical=False)
        return built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority.write_bytes(certificate("cluster", ca_key, "cluster", ca_key))
    key_text = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server.write_bytes(key_text + certificate("apiserver", server_key, "cluster", ca_key))
