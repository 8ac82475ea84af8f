"""The admin API, on a port of its own: keys, usage and the audit log over HTTP. Whatever is asked, a key is asked for.

`admin.key` opens it, or an API key with the scope `admin`; while there is neither, nothing does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any

import orjson
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, field_validator
from starlette.exceptions import HTTPException

from penstock import __version__, audit, config, used
from penstock.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    Forbidden,
    InvalidKey,
    MethodNotAllowed,
    PenstockError,
    StartError,
    StateUnavailable,
    UnknownUrl,
)
from penstock.keyring import Keyring, Made, Rights, Wanted, bad, duration_s
from penstock.store import UNAVAILABLE, reason
from serving.exchange import Receive, Scope, Send
from serving.keys import Keys, require
from serving.server import Server, bind
from serving.wire import OPENAI

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**10
BODY_S = 10.0
STOP_S = 2
ASGI = Any


class Rotation(BaseModel):
    """The body of a rotation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap: str = "0s"

    @field_validator("overlap")
    @classmethod
    def overlap_is_a_duration(cls, overlap: str) -> str:
        duration_s(overlap)
        return overlap


@asynccontextmanager
async def listening(admin: config.Admin, port: int, keyring: Keyring, keys: Keys) -> AsyncIterator[None]:
    """While the block runs. Raises StartError."""
    try:
        listener = bind(admin.host, port)
    except StartError as error:
        what = error.message.partition(";")[0]
        raise StartError(f"the admin API {what}; choose another admin.host and admin.port") from error
    with listener:
        app = Guarded(application(keyring), Guard(admin, keys))
        server = Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("the admin API listens on http://%s:%d", *listener.getsockname()[:2])
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


class Guard:
    """Who may use the admin API."""

    def __init__(self, admin: config.Admin, keys: Keys) -> None:
        self._own = Keys([admin.key] if admin.key else [], closed=True)
        self._has_own = admin.key is not None
        self._keys = keys

    def check(self, headers: dict[bytes, bytes]) -> str:
        """Who it is, as the audit log has it. Raises InvalidKey, Forbidden."""
        if not self._has_own and not self._keys.any_may("admin"):
            raise Forbidden(
                "nobody may use this admin API yet: set admin.key, or make a key with "
                "`penstock keys create --name NAME --scopes admin`"
            )
        try:
            self._own.check(headers)
        except InvalidKey:
            if not self._keys.needed:
                raise
            caller = self._keys.check(headers)
            require(caller, "admin")
            return f"key:{caller.name}"
        return "admin.key"


class Guarded:
    """An ASGI application that sees no request but those of who may, with a body of bounded size."""

    def __init__(self, app: ASGI, guard: Guard) -> None:
        self.app = app
        self.guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            actor = self.guard.check(dict(scope["headers"]))
            body = await whole(receive)
        except PenstockError as error:
            answer = refusal(error)
            answer.headers["connection"] = "close"  # the rest of the body is not read
            return await answer(scope, receive, send)  # type: ignore[arg-type]
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> dict[str, Any]:
            return given.pop() if given else await receive()

        async def send_for_one(message: dict[str, Any]) -> None:
            """Nothing on the way keeps an answer, which may hold a key."""
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
            await send(message)

        await self.app({**scope, "state": {"actor": actor}}, receive_again, send_for_one)


async def whole(receive: Receive) -> bytes:
    """Raises BodyTooLarge, BodyTooSlow."""
    body: bytes = b""
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        raise BodyTooSlow(f"after {BODY_S:g} s the body is not complete") from None


def application(keyring: Keyring) -> FastAPI:
    """The routes. Who asks stands in `request.state.actor`."""
    app = FastAPI(title="Penstock's admin API", version=__version__, docs_url=None, redoc_url=None)
    store = keyring.store

    @app.get("/admin/keys")
    async def list_keys(all: bool = False) -> dict[str, Any]:
        """Those that are live; `all`: the revoked and expired ones, too."""
        shown = [key.described() for key in await keyring.all()]
        return {"keys": [key for key in shown if all or key["state"] == "live"]}

    @app.post("/admin/keys", status_code=201)
    async def create_key(wanted: Wanted, request: Request) -> dict[str, Any]:
        """The answer holds the key, this once."""
        return told(await keyring.create(wanted, request.state.actor))

    @app.post("/admin/keys/{name}/rotate", status_code=201)
    async def rotate_key(name: str, request: Request, rotation: Rotation | None = None) -> dict[str, Any]:
        """A new key with the same rights; the old one goes on for `overlap`."""
        overlap_s = duration_s((rotation or Rotation()).overlap)
        return told(await keyring.rotate(name, overlap_s, request.state.actor))

    @app.patch("/admin/keys/{name}")
    async def update_key(name: str, rights: Rights, request: Request) -> dict[str, Any]:
        """What is named is from now on so, null where there is to be none, the rest stays; effective within a second,
        in every process of every gateway. A key has its name and its tenant for good."""
        return {"keys": [key.described() for key in await keyring.update(name, rights, request.state.actor)]}

    @app.delete("/admin/keys/{name}")
    async def revoke_key(name: str, request: Request) -> dict[str, Any]:
        """Effective within a second, in every process of every gateway."""
        return {"revoked": [key.id for key in await keyring.revoke(name, request.state.actor)]}

    @app.get("/admin/usage")
    async def show_usage(
        by: Annotated[list[used.By], Query(max_length=8)] = list(used.BYS[:3]),  # noqa: B006
        since: date | None = None,
        until: date | None = None,
    ) -> dict[str, Any]:
        """Added up by key, model, day or tenant."""
        first, last = (day.isoformat() if day else None for day in (since, until))
        return {"usage": await used.used(store, by, first, last)}

    @app.get("/admin/audit")
    async def show_audit(
        after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        limit: Annotated[int, Query(ge=1, le=audit.PAGE)] = 100,
    ) -> dict[str, Any]:
        """The newest entries, or those that follow one."""
        found = await (audit.last(store, limit) if after is None else audit.entries(store, after, limit))
        return {"entries": [{**asdict(entry), "details": orjson.loads(entry.details)} for entry in found]}

    @app.get("/admin/audit/verify")
    async def verify_audit() -> dict[str, Any]:
        """`broken`: the number of the first entry that is not as it was written."""
        verdict = await audit.verify(store)
        return {"whole": verdict.broken is None, **asdict(verdict)}

    explain_errors(app)
    return app


def told(made: Made) -> dict[str, Any]:
    return {**made.stored.described(), "key": made.key}


def explain_errors(app: FastAPI) -> None:
    """Each in OpenAI's shape."""

    @app.exception_handler(PenstockError)
    async def known(request: Request, error: PenstockError) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        detail = dict(error.errors()[0])
        return refusal(bad({**detail, "loc": [part for part in detail["loc"][1:] if isinstance(part, str)]}))

    @app.exception_handler(HTTPException)
    async def unroutable(request: Request, error: HTTPException) -> Response:
        path, method = request.scope["path"], request.method
        if error.status_code == 404:
            return refusal(UnknownUrl(f"there is no route {path}"))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            return refusal(MethodNotAllowed(f"{path} takes {allowed}, not {method}", allow=allowed))
        return refusal(BadRequest(str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:  # which uvicorn logs
        return refusal(PenstockError("something went wrong here; the log says what"))

    for kind in UNAVAILABLE:
        app.add_exception_handler(kind, unavailable)


async def unavailable(request: Request, error: Exception) -> Response:
    log.error("the admin API cannot use the database: %s", reason(error))
    return refusal(StateUnavailable("the database does not answer; try again", retry_after_s=1))


def refusal(error: PenstockError) -> Response:
    answer = Response(orjson.dumps(OPENAI.error(error, "")), error.status, media_type="application/json")
    if error.retry_after_s is not None:
        answer.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        answer.headers["allow"] = error.allow
    return answer
