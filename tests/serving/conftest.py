"""The gateway on a real socket, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import httpx2
import pytest
import uvicorn

from penstock.chat import Chat
from penstock.config import Config
from serving.answer import Answer
from serving.app import Gateway
from serving.ledger import Ledger
from serving.protocol import HotProtocol
from serving.server import Server, bind
from serving.stack import running
from serving.state import kept

Running = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@asynccontextmanager
async def run_gateway(
    chats: dict[str, Chat] | None = None,
    /,
    *,
    hot: bool,
    stored: bool = False,
    ledger: Ledger | None = None,
    **tree: Any,
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway with this configuration; `chats` are served beside what it names. `stored`: it has its
    keys from `state.database`, too."""
    if "models" not in tree:
        tree |= {"engines": {"scripted": {"kind": "scripted"}}, "models": {"scripted": {"engine": "scripted"}}}
    config = Config(**tree)
    http = HotProtocol if hot else "httptools"
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        async with kept(config) if stored else nullcontext() as state:
            gateway = Gateway(config, state.keys if state else None, ledger or (state.ledger if state else None))
            server = Server(
                uvicorn.Config(
                    gateway, http=http, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
                )
            )
            async with running(config) as stack, gateway.admission:
                gateway.stack = stack
                stack.models.update({name: Answer(name, chat) for name, chat in (chats or {}).items()})
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                await stack.until_ready()
                url = f"http://127.0.0.1:{port}"
                async with httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
                    try:
                        yield client
                    finally:
                        server.should_exit = True
                        await serving


@pytest.fixture(params=[True, False], ids=["protocol", "asgi"])
def gateway(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Both ways in which a request is carried."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return partial(run_gateway, hot=request.param)
