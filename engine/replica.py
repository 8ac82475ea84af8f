"""One server that generates: where it is, whether it can be used, how much it is doing."""

import asyncio
from collections.abc import Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Self

import httpx2

# A generation may be silent for as long as its queue is: whoever waits sets the limits that fit the request.
CONNECT_TIMEOUT_S = 5.0
# Shorter than vLLM's own 5 seconds: a connection that it closes as we reuse it looks like a dying engine.
KEEP_ALIVE_S = 3.0


class Replica:
    """`ready` is set by whoever watches it; `suspect` asks that watcher to look again now."""

    def __init__(self, name: str, client: httpx2.AsyncClient) -> None:
        self.name = name
        self.client = client
        self.ready = asyncio.Event()
        self.outstanding = 0
        self.model: str | None = None  # the model's name there, where it differs from the served one
        self.suspect: Callable[[], None] = lambda: None

    @classmethod
    def at(cls, name: str, url: str, api_key: str | None = None) -> Self:
        """`http://host:8000` or `unix:/run/engine.sock`."""
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        transport = httpx2.AsyncHTTPTransport(
            uds=socket, limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        )
        headers = {"accept-encoding": "identity"}  # bytes are passed on as they come
        headers |= {"authorization": f"Bearer {api_key}"} if api_key else {}
        return cls(
            name,
            httpx2.AsyncClient(
                base_url="http://engine" if socket else url,
                transport=transport,
                headers=headers,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one caller's are not another's
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                trust_env=False,
            ),
        )

    @property
    def labels(self) -> tuple[str, str]:
        """`base-0` -> ("base", "0"), for metrics."""
        engine, _, number = self.name.rpartition("-")
        return engine, number

    @classmethod
    def behind(cls, name: str, socket: Path) -> Self:
        return cls.at(name, f"unix:{socket}")

    async def close(self) -> None:
        self.ready.clear()
        await self.client.aclose()
