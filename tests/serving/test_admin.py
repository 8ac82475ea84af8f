"""The admin API over a real socket: who is let in, what it does, and the shape of every refusal."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from penstock import audit
from penstock.callers import SCOPES
from penstock.config import Admin, Config
from penstock.errors import StartError
from penstock.keyring import Keyring, wanted
from penstock.store import opened
from penstock.tables import usage
from serving.admin import MAX_BODY_BYTES, application, listening
from serving.keys import Keys
from serving.server import bind
from serving.state import Copy
from tests.conftest import free_port
from tests.databases import Postgres

pytestmark = pytest.mark.anyio

PEPPER = b"pepper of the tests, long enough"
SERVED = Config(engines={"e": {"kind": "scripted"}}, models={"m": {"engine": "e"}})
ADMIN_KEY = "admin-key-0123456789"
OPENAI = {"message", "type", "param", "code"}


@pytest.fixture
async def ring(database: str) -> AsyncIterator[Keyring]:
    async with opened(database) as store:
        yield Keyring(store, PEPPER)


@asynccontextmanager
async def admin(ring: Keyring, key: str | None = ADMIN_KEY) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that bears the admin key."""
    keys = Keys([], PEPPER)
    following = asyncio.create_task(Copy(ring, keys, SERVED).follow())
    port = free_port()
    async with listening(Admin(key=SecretStr(key) if key else None), port, ring, keys):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=10) as client:
            yield client
    following.cancel()
    await asyncio.wait([following])


def routes() -> list[tuple[str, str]]:
    found = application(Keyring(None, PEPPER)).openapi()["paths"]  # type: ignore[arg-type]
    return [(method.upper(), path.replace("{name}", "x")) for path, methods in found.items() for method in methods]


async def test_a_keys_whole_life_over_http(ring: Keyring) -> None:
    async with admin(ring) as client:
        made = await client.post("/admin/keys", json={"name": "team", "rpm": 9, "models": ["m"], "expires": "30d"})
        listed = (await client.get("/admin/keys")).json()["keys"]
        changed = await client.patch("/admin/keys/team", json={"rpm": None, "guards": "strict"})
        entry = (await client.get("/admin/audit", params={"limit": 1})).json()["entries"][0]
        again = await client.post("/admin/keys/team/rotate", json={"overlap": "1h"})
        plain = await client.post("/admin/keys/team/rotate")
        gone = await client.delete("/admin/keys/team")
        after = (await client.get("/admin/keys")).json()["keys"]
        every = (await client.get("/admin/keys", params={"all": True})).json()["keys"]
    assert [answer.status_code for answer in (made, again, plain, gone)] == [201, 201, 201, 200]
    assert made.json()["key"].startswith(f"sk-ps-{made.json()['id']}-")
    assert (listed[0]["name"], listed[0]["rpm"], listed[0]["models"]) == ("team", 9, ["m"])
    assert "key" not in listed[0]
    assert changed.json() == {"keys": [listed[0] | {"rpm": None, "guards": "strict"}]}
    assert (entry["actor"], entry["action"], entry["subject"]) == ("admin.key", "key.updated", "team")
    assert entry["details"]["changed"][made.json()["id"]] == {
        "rpm": {"from": 9, "to": None},
        "guards": {"from": None, "to": "strict"},
    }
    assert again.json()["guards"] == "strict"
    assert made.headers["cache-control"] == "no-store"
    assert again.json()["holder"] == made.json()["id"] != again.json()["id"]
    assert set(gone.json()["revoked"]) == {answer.json()["id"] for answer in (made, again, plain)}
    assert (after, len(every)) == ([], 3)


@pytest.mark.parametrize("sent", [None, "wrong-key-0123456789", "sk-ps-unknown0-x"])
async def test_nothing_answers_without_a_key(ring: Keyring, sent: str | None) -> None:
    headers = {"authorization": f"Bearer {sent}" if sent else ""}
    async with admin(ring) as client:
        for method, path in [*routes(), ("GET", "/openapi.json"), ("GET", "/nope"), ("PUT", "/admin/keys")]:
            answer = await client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    assert await ring.all() == []


async def test_an_api_key_needs_the_scope_admin(ring: Keyring) -> None:
    user = (await ring.create(wanted({"name": "user", "scopes": set(SCOPES) - {"admin"}}), "test")).key
    root = (await ring.create(wanted({"name": "root", "scopes": ["admin"]}), "test")).key
    async with admin(ring) as client:
        await asyncio.sleep(0.5)
        for method, path in routes():
            refused = await client.request(method, path, headers={"authorization": f"Bearer {user}"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), path
            assert "`admin`" in refused.json()["error"]["message"]
        let_in = await client.post("/admin/keys", json={"name": "new"}, headers={"authorization": f"Bearer {root}"})
        entry = (await audit.last(ring.store, 1))[0]
        await client.delete("/admin/keys/root")
        await asyncio.sleep(0.5)
        ended = await client.get("/admin/keys", headers={"authorization": f"Bearer {root}"})
    assert let_in.status_code == 201
    assert (entry.actor, entry.action, entry.subject) == ("key:root", "key.created", "new")
    assert ended.status_code == 401


async def test_with_neither_kind_of_key_nobody_is_let_in(ring: Keyring) -> None:
    async with admin(ring, key=None) as client:
        refused = await client.get("/admin/keys")
        assert refused.status_code == 403
        assert "set admin.key" in refused.json()["error"]["message"]
        root = (await ring.create(wanted({"name": "root", "scopes": ["admin"]}), "test")).key
        await asyncio.sleep(0.5)
        assert (await client.get("/admin/keys")).status_code == 401
        assert (await client.get("/admin/keys", headers={"x-api-key": root})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "json", "status", "param"),
    [
        ("POST", "/admin/keys", {}, 400, "name"),
        ("POST", "/admin/keys", {"name": "a", "rpm": "many"}, 400, "rpm"),
        ("POST", "/admin/keys", {"name": "a", "scopes": ["root"]}, 400, "scopes"),
        ("POST", "/admin/keys", {"name": "a", "digest": "x"}, 400, "digest"),
        ("POST", "/admin/keys", {"name": "a", "expires": "soon"}, 400, "expires"),
        ("POST", "/admin/keys", {"name": "config"}, 400, "tenant"),
        ("POST", "/admin/keys", {"name": "a", "tenant": "local"}, 400, "tenant"),
        ("POST", "/admin/keys", [], 400, None),
        ("PATCH", "/admin/keys/a", {"rpm": 0}, 400, "rpm"),
        ("PATCH", "/admin/keys/a", {"scopes": None}, 400, "scopes"),
        ("PATCH", "/admin/keys/a", {"tenant": "t"}, 400, "tenant"),
        ("PATCH", "/admin/keys/a", {}, 400, None),
        ("PATCH", "/admin/keys/a", None, 400, None),
        ("PATCH", "/admin/keys/absent", {"rpm": 1}, 404, "name"),
        ("POST", "/admin/keys/a/rotate", {"overlap": "later"}, 400, "overlap"),
        ("POST", "/admin/keys/absent/rotate", {}, 404, "name"),
        ("DELETE", "/admin/keys/absent", None, 404, "name"),
        ("DELETE", "/admin/keys/%00", None, 404, "name"),
        ("GET", "/admin/usage?by=colour", None, 400, "by"),
        ("GET", "/admin/usage?since=yesterday", None, 400, "since"),
        ("GET", "/admin/audit?limit=0", None, 400, "limit"),
        ("GET", f"/admin/audit?after={10**30}", None, 400, "after"),
        ("GET", "/admin", None, 404, None),
        ("PUT", "/admin/keys", None, 405, None),
    ],
)
async def test_bad_input_is_refused_in_openais_shape(
    ring: Keyring, method: str, path: str, json: Any, status: int, param: str | None
) -> None:
    async with admin(ring) as client:
        answer = await client.request(method, path, json=json)
    error = answer.json()["error"]
    assert (answer.status_code, error.keys(), error["param"]) == (status, OPENAI, param)
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"name": "a", "rpm": 1e999}', b'{"name":' * 5000, b"NaN"])
async def test_a_body_that_is_no_json_is_a_400(ring: Keyring, body: bytes) -> None:
    async with admin(ring) as client:
        answer = await client.post("/admin/keys", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"].keys()) == (400, OPENAI)


async def test_a_name_that_is_taken_is_a_409(ring: Keyring) -> None:
    async with admin(ring) as client:
        codes = [(await client.post("/admin/keys", json={"name": "a"})).status_code for _ in range(2)]
    assert codes == [201, 409]


async def test_a_large_body_is_a_413(ring: Keyring) -> None:
    async with admin(ring) as client:
        answer = await client.post("/admin/keys", content=b"x" * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_usage_is_added_up_as_asked(ring: Keyring) -> None:
    def used(key: str, model: str, day: str, tokens: int) -> dict[str, Any]:
        counts = dict.fromkeys(["cached_tokens", "completion_tokens", "cut", "abandoned", "estimated"], 0)
        whose = {"key_id": key, "tenant": "acme", "name": f"name of {key}"}
        return {**whose, "model": model, "day": day, "requests": 1, "prompt_tokens": tokens, **counts}

    rows = [used("k1", "m", "2026-11-21", 1), used("k1", "n", "2026-11-22", 10), used("k2", "m", "2026-11-22", 100)]
    async with ring.store.begin() as connection:
        await connection.execute(usage.insert(), rows)

    async with admin(ring) as client:

        async def asked(**params: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await client.get("/admin/usage", params=params)).json()["usage"]
            return found

        by_key = await asked(by="key")
        by_day = await asked(by=["tenant", "day"], since="2026-11-22")
        whole = await asked()
    assert [(row["key_id"], row["name"], row["requests"], row["prompt_tokens"]) for row in by_key] == [
        ("k1", "name of k1", 2, 11),
        ("k2", "name of k2", 1, 100),
    ]
    assert [(row["tenant"], row["day"], row["prompt_tokens"]) for row in by_day] == [("acme", "2026-11-22", 110)]
    assert len(whole) == 3


async def test_the_audit_log_is_read_and_verified(ring: Keyring) -> None:
    async with admin(ring) as client:
        for name in "abc":
            await client.post("/admin/keys", json={"name": name})
        newest = (await client.get("/admin/audit", params={"limit": 2})).json()["entries"]
        following = (await client.get("/admin/audit", params={"after": 1, "limit": 1})).json()["entries"]
        verdict = (await client.get("/admin/audit/verify")).json()
    assert [(entry["number"], entry["subject"], entry["actor"]) for entry in newest] == [
        (2, "b", "admin.key"),
        (3, "c", "admin.key"),
    ]
    assert newest[0]["details"]["scopes"] == ["generate"]
    assert following == newest[:1]
    assert (verdict["whole"], verdict["entries"], verdict["head"]) == (True, 3, newest[1]["digest"])


async def test_a_database_that_is_gone_is_a_503(postgres: Postgres) -> None:
    async with opened(await postgres.fresh()) as store, admin(Keyring(store, PEPPER)) as client:
        postgres.stop()
        try:
            answer = await client.get("/admin/keys")
        finally:
            await asyncio.to_thread(postgres.start)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "state_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/admin/keys")).status_code == 200


async def test_a_port_in_use_is_told(ring: Keyring) -> None:
    with bind("127.0.0.1", 0) as taken:
        with pytest.raises(StartError, match=r"the admin API cannot listen .* choose another admin.host"):
            async with listening(Admin(), taken.getsockname()[1], ring, Keys([])):
                pass
