"""Keys in both kinds of store: made, changed, rotated, revoked, and what is kept of them."""

import asyncio
import json
import multiprocessing
import re
import stat
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from penstock import audit
from penstock.audit import NOTHING
from penstock.callers import LOCAL, UNLIMITED, USUAL_SCOPES, Quota
from penstock.errors import BadRequest, Conflict, NotFound, StartError
from penstock.keyring import Keyring, digest, duration_s, pepper, rights, wanted
from penstock.store import Store, opened
from penstock.tables import keys
from serving.keys import configured
from tests.databases import save

pytestmark = pytest.mark.anyio

PEPPER = b"pepper of the tests, long enough"


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with opened(database) as store:
        yield store


@pytest.fixture
def ring(store: Store) -> Keyring:
    return Keyring(store, PEPPER)


def named(name: str, **fields: Any) -> Any:
    return wanted({"name": name, **fields})


async def test_a_key_is_made_with_all_its_rights(ring: Keyring) -> None:
    made = await ring.create(
        named(
            "team",
            tenant="acme",
            scopes=["generate", "metrics"],
            models=["b", "a"],
            rpm=60,
            tpm=1000,
            concurrent=4,
            daily_tokens=10**12,
            monthly_tokens=2**53,
            priority=3,
            expires="30d",
            guards="strict",
        ),
        "me",
    )
    assert re.fullmatch(r"sk-ps-[A-Za-z0-9]{8}-[A-Za-z0-9]{43}", made.key)
    (stored,) = await ring.all()
    caller = stored.caller
    assert stored == made.stored or stored.digest == made.stored.digest
    assert (caller.id, caller.name, caller.tenant, caller.priority) == (stored.id, "team", "acme", 3)
    assert (caller.scopes, caller.models) == (frozenset({"generate", "metrics"}), frozenset({"a", "b"}))
    assert caller.quota == Quota(60, 1000, 4, 10**12, 2**53)
    assert caller.guards == "strict"
    assert caller.expires_at is not None
    assert 0 <= caller.expires_at - stored.created_at - 30 * 86400 < 1


async def test_a_plain_key_may_generate_with_all_models_for_ever(ring: Keyring) -> None:
    caller = (await ring.create(named("plain"), "me")).stored.caller
    assert (caller.tenant, caller.scopes) == ("plain", USUAL_SCOPES)
    assert (caller.models, caller.expires_at) == (None, None)
    assert caller.quota.is_unlimited


@pytest.mark.parametrize("tenant", sorted({LOCAL.tenant, *(configured(number).tenant for number in range(2))}))
async def test_no_key_is_made_in_the_tenant_of_callers_without_a_stored_one(ring: Keyring, tenant: str) -> None:
    for fields in ({"name": tenant}, {"name": "a", "tenant": tenant}):
        with pytest.raises(BadRequest, match="give this key another tenant") as raised:
            await ring.create(wanted(fields), "me")
        assert raised.value.param == "tenant"
    made = await ring.create(named(tenant, tenant="ours"), "me")
    assert made.stored.caller.tenant == "ours"


async def test_the_key_itself_is_nowhere_in_the_database(ring: Keyring, store: Store, database: str) -> None:
    made = await ring.create(named("canary"), "me")
    again = await ring.rotate("canary", 60, "me")
    await ring.revoke("canary", "me")
    async with store.read() as connection:
        tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        rows = [str(row) for name in tables for row in await connection.exec_driver_sql(f'SELECT * FROM "{name}"')]
    assert rows
    for key in (made.key, again.key):
        secret = key.rpartition("-")[2]
        assert not any(secret in row for row in rows)
        if database.startswith("sqlite"):
            files = list(Path(database.removeprefix("sqlite:///")).parent.iterdir())
            assert files
            assert not any(secret.encode() in file.read_bytes() for file in files)


async def test_what_is_kept_is_the_hmac_under_the_pepper(ring: Keyring, store: Store) -> None:
    made = await ring.create(named("a"), "me")
    async with store.read() as connection:
        kept = await connection.scalar(sa.select(keys.c.digest))
    assert kept == digest(PEPPER, made.key.encode()) != digest(b"another pepper", made.key.encode())


async def test_a_name_is_taken_until_its_key_is_revoked_or_expires(ring: Keyring) -> None:
    await ring.create(named("a"), "me")
    with pytest.raises(Conflict, match="there is a key named a already"):
        await ring.create(named("a"), "me")
    await ring.revoke("a", "me")
    await ring.create(named("a", expires="1s"), "me")
    await asyncio.sleep(1.1)
    await ring.create(named("a"), "me")
    assert [key.state for key in await ring.all()] == ["revoked", "expired", "live"]


async def test_a_rotation_keeps_the_rights_the_holder_and_for_its_overlap_the_old_key(ring: Keyring) -> None:
    old = await ring.create(named("a", rpm=7, models=["m"], expires="2d"), "me")
    new = await ring.rotate("a", 3600, "me")
    was, now = await ring.all()
    assert new.key != old.key
    assert now.caller.id == was.caller.id == old.stored.id != now.id
    assert (now.caller.quota, now.caller.models) == (old.stored.caller.quota, old.stored.caller.models)
    assert was.caller.expires_at is not None
    assert now.caller.expires_at is not None
    assert 0 <= was.caller.expires_at - now.created_at - 3600 < 1
    assert 0 <= now.caller.expires_at - now.created_at - 2 * 86400 < 1


async def test_a_rotation_without_overlap_ends_the_old_key_and_no_overlap_outlasts_its_expiry(ring: Keyring) -> None:
    await ring.create(named("a", expires="1h"), "me")
    await ring.rotate("a", 86400, "me")
    first, second = await ring.all()
    assert (first.caller.expires_at or 0) - first.created_at <= 3601
    await ring.rotate("a", 0, "me")
    assert [key.state for key in await ring.all()] == ["expired", "expired", "live"]
    assert second.state == "live"  # as it was when it was read


async def test_a_rotation_within_the_overlap_of_another_lasts_as_long_as_the_first_key_did(ring: Keyring) -> None:
    for name, expires in (("for-ever", {}), ("a-month", {"expires": "30d"})):
        await ring.create(named(name, **expires), "me")
        await ring.rotate(name, 3600, "me")
        last = (await ring.rotate(name, 60, "me")).stored
        ends = last.caller.expires_at
        assert ends is None if not expires else ends == pytest.approx(last.created_at + 30 * 86400)


async def test_revoking_ends_both_keys_of_a_rotation(ring: Keyring) -> None:
    await ring.create(named("a"), "me")
    await ring.rotate("a", 3600, "me")
    assert len(await ring.revoke("a", "me")) == 2
    assert [key.state for key in await ring.all()] == ["revoked", "revoked"]
    with pytest.raises(NotFound):
        await ring.revoke("a", "me")


async def changed(ring: Keyring) -> list[Any]:
    """What the audit log's last entry says: who, what, of whom, and the details."""
    entry = (await audit.last(ring.store, 1))[0]
    return [entry.actor, entry.action, entry.subject, json.loads(entry.details)]


async def test_an_update_changes_what_it_names_and_nothing_else(ring: Keyring) -> None:
    made = await ring.create(named("a", rpm=7, models=["m"], priority=3, guards="lax", tenant="t"), "me")
    await ring.create(named("b", rpm=7), "me")
    before = (await ring.all())[0].described()
    (now,) = await ring.update("a", rights({"rpm": 9, "models": None, "scopes": ["steps", "generate"]}), "you")
    assert now.described() == before | {"rpm": 9, "models": None, "scopes": ["generate", "steps"]}
    assert (now.digest, now.caller.id) == (made.stored.digest, made.stored.id)
    stored, other = await ring.all()
    assert stored.described() == now.described()
    assert await changed(ring) == [
        "you",
        "key.updated",
        "a",
        {
            "changed": {
                now.id: {
                    "rpm": {"from": 7, "to": 9},
                    "models": {"from": ["m"], "to": None},
                    "scopes": {"from": ["generate"], "to": ["generate", "steps"]},
                }
            }
        },
    ]
    assert other.caller.quota == Quota(7)


async def test_all_that_a_key_may_can_be_changed_and_taken_away_again(ring: Keyring) -> None:
    plain = (await ring.create(named("a"), "me")).stored.described()
    limits = {"rpm": 1, "tpm": 2, "concurrent": 3, "daily_tokens": 4, "monthly_tokens": 2**53}
    given = {**limits, "models": ["a", "b"], "guards": "strict", "priority": -5, "scopes": ["admin"]}
    (now,) = await ring.update("a", rights({**given, "expires": "1h"}), "me")
    ends = now.caller.expires_at
    assert ends is not None
    assert 3590 < ends - now.created_at < 3660
    assert now.described() == plain | given | {"expires_at": ends}
    nothing = dict.fromkeys([*limits, "models", "guards", "expires"])
    (now,) = await ring.update("a", rights({**nothing, "priority": 0, "scopes": ["generate"]}), "me")
    assert now.described() == plain
    assert now.caller.quota is UNLIMITED


async def test_an_update_that_changes_nothing_is_no_change(ring: Keyring) -> None:
    await ring.create(named("a", rpm=7), "me")
    read = await ring.since(NOTHING)
    (now,) = await ring.update("a", rights({"rpm": 7, "guards": None}), "you")
    assert now == read.keys[0] or now.described() == read.keys[0].described()
    assert (await ring.since(read.seen)).keys == []
    assert (await changed(ring))[1] == "key.created"
    await ring.update("a", rights({"rpm": 8}), "you")
    assert [key.caller.quota.rpm for key in (await ring.since(read.seen)).keys] == [8]


async def test_an_update_is_of_both_keys_of_a_rotation_and_lets_the_old_one_go_on_no_longer(ring: Keyring) -> None:
    await ring.create(named("a", expires="30d"), "me")
    await ring.rotate("a", 3600, "me")
    overlap = (await ring.all())[0].caller.expires_at
    old, new = await ring.update("a", rights({"guards": "strict", "expires": "2d"}), "me")
    assert [key.caller.guards for key in (old, new)] == ["strict", "strict"]
    assert old.caller.expires_at == overlap
    assert new.caller.expires_at == pytest.approx(new.created_at + 2 * 86400, abs=60)
    details = (await changed(ring))[3]["changed"]
    assert [details[old.id].keys(), details[new.id].keys()] == [{"guards"}, {"guards", "expires_at"}]
    old, new = await ring.update("a", rights({"expires": None}), "me")
    assert (old.caller.expires_at, new.caller.expires_at) == (overlap, None)
    old, new = await ring.update("a", rights({"expires": "10m"}), "me")
    assert old.caller.expires_at == new.caller.expires_at


async def test_a_key_is_rotated_into_one_that_lasts_as_long_as_was_last_said(ring: Keyring, store: Store) -> None:
    await ring.create(named("a"), "me")
    async with store.begin() as connection:  # as if it were a year old
        await connection.execute(keys.update().values(created_at=keys.c.created_at - 365 * 86400))
    await ring.update("a", rights({"expires": "2d"}), "me")
    made = (await ring.rotate("a", 60, "me")).stored
    assert made.caller.expires_at == pytest.approx(made.created_at + 2 * 86400)
    await ring.update("a", rights({"expires": None}), "me")
    assert (await ring.rotate("a", 0, "me")).stored.caller.expires_at is None


async def test_only_a_live_key_is_updated(ring: Keyring) -> None:
    await ring.create(named("gone"), "me")
    await ring.revoke("gone", "me")
    await ring.create(named("over", expires="1h"), "me")
    async with ring.store.begin() as connection:
        await connection.execute(keys.update().where(keys.c.name == "over").values(expires_at=1.0))
    entries = len(await audit.entries(ring.store))
    for name, why in (
        ("gone", "the key named 'gone' was revoked"),
        ("over", "the key named 'over' has expired"),
        ("ovr", "no key is named 'ovr', did you mean 'over'"),
        ("\0", "no key is named"),
    ):
        with pytest.raises(NotFound, match=why) as raised:
            await ring.update(name, rights({"rpm": 1}), "me")
        assert raised.value.param == "name"
    with pytest.raises(BadRequest, match="at least one of scopes, models, rpm"):
        await ring.update("over", rights({}), "me")
    assert len(await audit.entries(ring.store)) == entries
    assert all(key.caller.quota.is_unlimited for key in await ring.all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rpm": 0}, "rpm: "),
        ({"scopes": None}, "scopes: "),
        ({"scopes": ["root"]}, "scopes"),
        ({"priority": None}, "priority: "),
        ({"models": []}, "models: "),
        ({"guards": ""}, "guards: "),
        ({"expires": "0s"}, "expires: a key that expires at once"),
        ({"tenant": "t"}, "tenant: a key has it for good; make another key"),
        ({"name": "b"}, "name: a key has it for good; make another key"),
        ({"digest": "x"}, "digest: "),
    ],
)
def test_what_is_no_right_is_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as raised:
        rights(fields)
    assert raised.value.message.startswith(message)


async def test_an_unknown_name_is_told_with_the_nearest(ring: Keyring) -> None:
    await ring.create(named("handbook"), "me")
    for act in (ring.rotate("handbok", 0, "me"), ring.revoke("handbok", "me")):
        with pytest.raises(NotFound, match="did you mean 'handbook'"):
            await act


async def test_a_copy_is_told_what_has_changed_and_no_more(ring: Keyring) -> None:
    await ring.create(named("a"), "me")
    await ring.create(named("b"), "me")
    read = await ring.since(NOTHING)
    assert [key.caller.name for key in read.keys] == ["a", "b"]
    again = await ring.since(read.seen)
    assert (again.keys, again.seen, again.restored) == ([], read.seen, False)
    await ring.revoke("a", "me")
    news = await ring.since(read.seen)
    assert [(key.id, key.state) for key in news.keys] == [(read.keys[0].id, "revoked")]
    assert not news.restored


async def test_a_copy_is_told_of_another_history_whatever_its_number(
    ring: Keyring, database: str, tmp_path: Path
) -> None:
    await ring.create(named("a"), "me")
    saved = await save(database, tmp_path)
    await ring.create(named("b"), "me")
    read = await ring.since(NOTHING)
    await saved.put_back()
    assert (await ring.since(read.seen)).restored  # the number has fallen
    for name in ("c", "d", "e"):
        await ring.create(named(name), "me")
        assert (await ring.since(read.seen)).restored  # it is the same again, then higher
    assert [key.caller.name for key in (await ring.since(NOTHING)).keys] == ["a", "c", "d", "e"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name: "),
        ({"name": "a/b"}, "name: "),
        ({"name": "a\n"}, "name: "),
        ({"name": "x" * 129}, "name: "),
        ({"name": "a", "rpm": 0}, "rpm: "),
        ({"name": "a", "rpm": 2**31}, "rpm: "),
        ({"name": "a", "rpm": True}, "rpm: "),
        ({"name": "a", "monthly_tokens": 2**53 + 1}, "monthly_tokens: "),
        ({"name": "a", "scopes": []}, "scopes: "),
        ({"name": "a", "scopes": ["root"]}, "scopes"),
        ({"name": "a", "models": []}, "models: "),
        ({"name": "a", "models": ["\0"]}, "models"),
        ({"name": "a", "expires": "soon"}, "expires: write a duration"),
        ({"name": "a", "expires": "0d"}, "expires: "),
        ({"name": "a", "expires": "999999999w"}, "expires: write a duration"),
        ({"name": "a", "colour": "red"}, "colour: "),
        ({"name": "\ud800"}, "name: "),
        ({}, "name: "),
    ],
)
def test_what_is_no_key_is_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as raised:
        wanted(fields)
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


async def test_keys_made_under_another_pepper_are_told_before_they_fail(ring: Keyring, store: Store) -> None:
    other = Keyring(store, b"another pepper of the same length")
    await other.check_pepper()  # nothing has been made yet
    await ring.create(named("a"), "me")
    await ring.check_pepper()
    with pytest.raises(StartError, match="another pepper"):
        await other.check_pepper()
    with pytest.raises(StartError, match="another pepper"):
        await other.create(named("b"), "me")
    assert len(await ring.all()) == 1


def test_a_pepper_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(lambda _: pepper(None), range(64)))
    assert len(made) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["pepper"]
    assert stat.S_IMODE((tmp_path / "pepper").stat().st_mode) == 0o600
    assert pepper(SecretStr("x" * 32)) == b"x" * 32


def test_a_damaged_pepper_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    (tmp_path / "pepper").write_text("short")
    with pytest.raises(StartError, match="damaged"):
        pepper(None)


def change_keys(database: str, prefix: str, times: int) -> None:
    """In a process of its own."""

    async def change() -> None:
        async with opened(database) as store:
            ring = Keyring(store, PEPPER)
            for number in range(times):
                name = f"{prefix}{number}"
                await ring.create(named(name), prefix)
                await ring.update(name, rights({"rpm": 1 + number}), prefix)
                await ring.rotate(name, 60, prefix)
                await ring.revoke(name, prefix)

    asyncio.run(change())


async def test_processes_that_change_keys_at_once_keep_the_audit_log_whole(database: str, store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=change_keys, args=(database, prefix, 10)) for prefix in ("a", "b", "c")]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    verdict = await audit.verify(store)
    assert (verdict.entries, verdict.broken) == (120, None)
    assert len({key.change for key in await Keyring(store, PEPPER).all()}) == 30  # revoked: both of each rotation


async def test_ten_thousand_keys_are_read_in_a_moment(ring: Keyring, store: Store) -> None:
    made = await ring.create(named("a"), "me")
    async with store.begin() as connection:
        row = dict((await connection.execute(sa.select(keys))).mappings().one())
        many = [{**row, "id": f"{number:08}", "name": f"n{number}"} for number in range(10_000)]
        await connection.execute(keys.insert(), many)
    read = (await asyncio.wait_for(ring.since(NOTHING), 10)).keys
    assert len(read) == 10_001
    assert sys.getsizeof(read[0].digest) < 100
    assert made.stored.id in {key.id for key in read}
