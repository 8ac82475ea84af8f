"""Who is let in: what a key costs to look up, when it ends, what it may."""

import hmac
import itertools
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from penstock.callers import LOCAL, Caller, Scope
from penstock.errors import Forbidden, InvalidKey
from penstock.keyring import Key, digest
from serving import keys as module
from serving.keys import Keys, require

PEPPER = b"pepper of the tests, long enough"
SECRET = "x" * 43
CONFIGURED = "sk-0123456789abcdef"
NOW = 1_800_000_000.0
numbers = itertools.count(1)


def stored(
    id: str = "abcd1234", *, revoked: bool = False, expires_at: float | None = None, scope: Scope = "generate"
) -> Key:
    caller = Caller(id, "a", "a", frozenset({scope}), expires_at=expires_at)
    return Key(id, digest(PEPPER, sent(id).encode()), caller, 0.0, 1.0 if revoked else None, next(numbers))


def sent(id: str = "abcd1234", secret: str = SECRET) -> str:
    return f"sk-ps-{id}-{secret}"


def headers(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def knowing(*known: Key, configured: list[str] | None = None) -> Keys:
    keys = Keys([SecretStr(key) for key in configured or []], PEPPER)
    keys.learn(known)
    return keys


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed and compared."""
    done: list[str] = []

    class Counted:
        @staticmethod
        def compare_digest(a: Any, b: Any) -> bool:
            done.append("compare")
            return hmac.compare_digest(a, b)

    def counted(pepper: bytes, key: bytes) -> bytes:
        done.append("hmac")
        return digest(pepper, key)

    monkeypatch.setattr(module, "hmac", Counted)
    monkeypatch.setattr(module, "digest", counted)
    return done


@pytest.mark.parametrize(
    "key",
    [sent(), CONFIGURED, sent(secret="y" * 43), sent("unknown0"), "sk-ps-", "nonsense", "x" * 60_000],
    ids=["right", "configured", "wrong secret", "unknown id", "short", "nonsense", "long"],
)
def test_every_key_costs_one_hmac_and_one_comparison(work: list[str], key: str) -> None:
    keys = knowing(stored(), configured=[CONFIGURED])
    work.clear()
    with suppress(InvalidKey):
        keys.check(headers(key))
    assert work == ["hmac", "compare"]


@pytest.mark.parametrize("key", [sent(secret="y" * 43), sent("unknown0"), "nonsense"])
def test_a_refusal_does_not_say_whether_the_id_is_known(key: str) -> None:
    with pytest.raises(InvalidKey) as raised:
        knowing(stored()).check(headers(key))
    assert raised.value.message == module.UNKNOWN


@given(st.binary(max_size=80))
def test_whatever_is_sent_as_a_key_is_only_refused(sent: bytes) -> None:
    keys = knowing(stored(), configured=[CONFIGURED])
    for sends in (
        {b"authorization": b"Bearer " + sent},
        {b"x-api-key": b"sk-ps-abcd1234-" + sent},
        {b"x-api-key": sent},
    ):
        with pytest.raises(InvalidKey):
            keys.check(sends)


def test_a_stored_and_a_configured_key_are_known_beside_each_other() -> None:
    keys = knowing(stored(), configured=[CONFIGURED])
    assert keys.check(headers(sent())).id == "abcd1234"
    assert keys.check(headers(CONFIGURED)).id == "config-0"
    assert keys.check({b"x-api-key": sent().encode()}).id == "abcd1234"


def test_a_revoked_key_is_no_longer_known_and_the_gateway_does_not_open() -> None:
    keys = knowing(stored())
    keys.learn([stored(revoked=True)])
    for sends in (headers(sent()), {}):
        with pytest.raises(InvalidKey):
            keys.check(sends)


def test_a_key_that_was_revoked_before_this_start_closes_the_gateway_too() -> None:
    with pytest.raises(InvalidKey):
        knowing(stored(revoked=True)).check({})


def test_a_key_ends_at_its_time_whatever_the_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = knowing(stored(expires_at=NOW))
    monkeypatch.setattr(time, "time", lambda: NOW - 0.001)
    assert keys.check(headers(sent())).name == "a"
    monkeypatch.setattr(time, "time", lambda: NOW)
    with pytest.raises(InvalidKey, match="has expired"):
        keys.check(headers(sent()))


def test_new_keys_of_the_configuration_take_the_place_of_the_old_ones() -> None:
    keys = knowing(stored(), configured=[CONFIGURED])
    keys.configure([SecretStr("another-key-of-the-configuration")])
    assert keys.check(headers("another-key-of-the-configuration")).id == "config-0"
    assert keys.check(headers(sent())).id == "abcd1234"
    with pytest.raises(InvalidKey):
        keys.check(headers(CONFIGURED))


def test_without_any_key_this_machine_is_let_in_unless_closed() -> None:
    assert Keys([]).check({b"host": b"localhost:8000"}) is LOCAL
    with pytest.raises(Forbidden, match="penstock keys create"):
        Keys([]).check({b"host": b"evil.example"})
    with pytest.raises(InvalidKey):
        Keys([], closed=True).check({b"host": b"localhost:8000"})


def test_a_missing_scope_is_named_with_those_there_are() -> None:
    with pytest.raises(Forbidden, match="lacks the scope `metrics`; it has generate"):
        require(stored().caller, "metrics")
    require(LOCAL, "metrics")


def test_whether_any_key_has_a_scope_follows_the_keys() -> None:
    keys = knowing(stored(), stored("root0000", scope="admin"))
    assert keys.any_may("admin")
    keys.learn([stored("root0000", scope="admin", revoked=True)])
    assert not keys.any_may("admin")


def test_the_last_configured_key_that_is_taken_away_opens_nothing() -> None:
    keys = Keys([SecretStr("a-key-of-sixteen-characters")])
    keys.configure([])
    assert keys.needed
