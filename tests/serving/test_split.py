"""Who gets the version that is tried: the right share, and each conversation the same one all the time."""

from typing import Any

import pytest

from registry.canaries import Canary, Rules
from serving.exchange import Exchange
from serving.split import place, takes


def canary(percent: float = 10, version: int = 2, alias: str = "production") -> Canary:
    return Canary(9, "demo", alias, 1, version, percent, Rules(), None, 0.0, "me", 9)


def asked(tenant: str = "t", session: str | None = None) -> Exchange:
    exchange = Exchange("POST", "/v1/chat/completions", {b"x-session-id": session.encode()} if session else {})
    exchange.tenant = tenant
    return exchange


def said(*turns: str, **more: Any) -> dict[str, Any]:
    """A conversation that begins with the system's words, then the user's."""
    roles = ["system", *["user", "assistant"] * len(turns)]
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)], **more}


@pytest.mark.parametrize("percent", [0.5, 10, 50])
@pytest.mark.parametrize("by", ["session", "tenant", "user", "words"])
def test_of_ten_thousand_the_right_share_within_chance(percent: float, by: str) -> None:
    def one(number: int) -> bool:
        exchange = asked(f"t{number}" if by == "tenant" else "t", f"s{number}" if by == "session" else None)
        body = said("Be kind.", f"Tell me about {number}." if by == "words" else "Hello")
        return takes(canary(percent), exchange, body | ({"user": f"u{number}"} if by == "user" else {}))

    taken = sum(map(one, range(10_000)))
    deviation = (10_000 * percent / 100 * (1 - percent / 100)) ** 0.5
    assert abs(taken - 100 * percent) < 4 * deviation


def test_a_conversation_stays_where_it_began_while_it_grows() -> None:
    for number in range(50):
        turns = ["Be kind.", f"Hello, {number}.", "Hello!", "And then?", "Then it ends.", "Does it?"]
        places = {place(canary(), asked(), said(*turns[:length])) for length in range(2, 7)}
        assert len(places) == 1


def test_a_session_stays_whatever_is_said_in_it_and_tenants_with_the_same_one_are_not_one() -> None:
    one = {place(canary(), asked(session="s"), said("", f"{number}")) for number in range(20)}
    assert len(one) == 1
    assert one != {place(canary(), asked("other", session="s"), said("", "1"))}


def test_long_turns_that_begin_alike_are_not_one() -> None:
    places = {place(canary(), asked(), said("Be kind.", "You are given a text. " * 1000 + f"{n}")) for n in range(20)}
    assert len(places) == 20


def test_users_that_are_all_called_alike_do_not_all_go_one_way() -> None:
    taken = [takes(canary(50), asked(), said("", f"{number}", user="app")) for number in range(200)]
    assert 60 < sum(taken) < 140


def test_every_canary_has_others_and_a_larger_share_has_all_of_a_smaller_one() -> None:
    bodies = [said("", f"{number}") for number in range(2000)]
    first = [takes(canary(10), asked(), body) for body in bodies]
    for other in (canary(10, version=3), canary(10, alias="staging")):
        both = sum(a and b for a, b in zip(first, (takes(other, asked(), body) for body in bodies), strict=True))
        assert both < 60
    more = [takes(canary(30), asked(), body) for body in bodies]
    assert all(b for a, b in zip(first, more, strict=True) if a)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "Once"},
        {"prompt": [1, 2, 3]},
        {"prompt": ["Once", "twice"]},
        {"input": "Once"},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Once"}]}], "instructions": "Be kind."},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "system": [{"text": "a"}]},
        {"messages": [{"role": "assistant", "content": "a"}] * 20, "user": "\ud800"},
        {"query": "Which?", "documents": ["a"]},
        {"messages": "x" * 10**6},
    ],
)
def test_every_route_s_body_has_a_place(body: dict[str, Any]) -> None:
    assert 0 <= place(canary(), asked(), body) == place(canary(), asked(), body) < 2**64


def test_prompts_of_tokens_differ_beyond_their_beginning() -> None:
    places = {place(canary(), asked(), {"prompt": [1] * 100 + [number]}) for number in range(20)}
    assert len(places) == 20
