"""Every route of the admin API's document, with paths, queries and bodies drawn from it and mutated: no 5xx, and no
success for who has no right to it."""

import asyncio
import json
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from penstock.callers import SCOPES
from penstock.keyring import Keyring, Wanted, wanted
from penstock.store import opened
from serving.admin import Rotation, application
from tests.reliability.client import Caller as Client
from tests.serving.drawn import drawn, header, mutated, odd, resolved
from tests.serving.test_admin import ADMIN_KEY, PEPPER, admin
from tests.serving.test_fuzz import status_of

ASKED_A_ROUTE = 200
SOON_S = 10.0
DOCUMENT: dict[str, Any] = application(Keyring(None, PEPPER)).openapi()  # type: ignore[arg-type]
ROUTES = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
NAMES = sorted({*Wanted.model_fields, *Rotation.model_fields, "", "zzz"})
HEADERS = "content-type accept expect x-request-id cookie origin x-forwarded-for range".split()


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def one_of(random: Random, schema: dict[str, Any]) -> Any:
    return odd(random) if random.random() < 0.3 else drawn(random, schema, DOCUMENT)


def target_of(random: Random, path: str, parameters: list[dict[str, Any]]) -> str:
    """The path and its query, with what the document says of both, or odd things."""
    query: list[tuple[str, str]] = []
    for of in parameters:
        value = one_of(random, of["schema"])
        if of["in"] == "path":
            named = random.choice(("a", "b", "c", written(value)))
            path = path.replace(f"{{{of['name']}}}", quote(named[:200], safe="") or "%20")
        elif random.random() < 0.5:
            query += [(of["name"], written(each)[:200]) for each in (value if isinstance(value, list) else [value])]
    if random.random() < 0.1:
        query.append((random.choice(NAMES), written(odd(random))[:200]))
    return f"{path}?{urlencode(query)}" if query else path


def body_of(random: Random, operation: dict[str, Any]) -> bytes:
    if "requestBody" not in operation:
        return b"" if random.random() < 0.9 else b"{}"
    if random.random() < 0.05:
        return random.randbytes(random.randrange(50))
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = drawn(random, schema, DOCUMENT)
    return json.dumps(body if random.random() < 0.3 else mutated(random, body, NAMES)).encode()


def request_of(random: Random, method: str, path: str, key: str | None) -> bytes:
    operation = DOCUMENT["paths"][path][method]
    parameters = [resolved(parameter, DOCUMENT) for parameter in operation.get("parameters", [])]
    target, body = target_of(random, path, parameters), body_of(random, operation)
    head = {"content-type": "application/json"} if random.random() < 0.9 else {}
    for name in random.sample(HEADERS, random.choice((0, 0, 0, 1, 2))):
        head[name] = header(random, {"type": "string"})
    if key:
        head["authorization"] = f"Bearer {key}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    first = f"{method.upper()} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    return f"{first}{lines}content-length: {len(body)}\r\n\r\n".encode("latin-1") + body


async def stored(ring: Keyring) -> list[dict[str, Any]]:
    return [key.described() for key in await ring.all()]


@pytest.mark.anyio
async def test_no_mutated_request_is_a_5xx_or_does_anything_without_the_right_key(database: str) -> None:
    async with opened(database) as store:
        ring = Keyring(store, PEPPER)
        user = (await ring.create(wanted({"name": "user", "scopes": set(SCOPES) - {"admin"}}), "test")).key
        for name in "abc":
            await ring.create(wanted({"name": name}), "test")
        before = await stored(ring)
        async with admin(ring) as client, Client(str(client.base_url)) as caller:
            async with asyncio.timeout(SOON_S):
                while (await client.get("/admin/keys", headers={"authorization": f"Bearer {user}"})).status_code == 401:
                    await asyncio.sleep(0.05)
            seen: dict[tuple[str, str, str], set[int]] = {}
            for who, key in (("nobody", None), ("user", user), ("admin", ADMIN_KEY)):
                if who == "admin":
                    assert await stored(ring) == before
                for method, path in ROUTES:
                    random = Random(f"{method} {path}")
                    for _ in range(ASKED_A_ROUTE):
                        request = request_of(random, method, path, key)
                        async with asyncio.timeout(SOON_S):
                            status, said = await status_of(caller, request)
                        assert status < 500, (status, said, request)
                        seen.setdefault((who, method, path), set()).add(status)
    for (who, method, path), statuses in seen.items():
        if who == "admin":
            assert statuses & {200, 201}, (method, path)
        else:
            assert statuses == {401 if who == "nobody" else 403} | (statuses & {400}), (who, method, path)
