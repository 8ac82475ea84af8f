"""The prefix index and the ring."""

from hypothesis import given
from hypothesis import strategies as st

from engine.affinity import MAX_LINKS, PrefixIndex, Ring, hint_of

TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=3000)), min_size=1, max_size=8)


def body(turns: list[tuple[str, str]]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@given(TURNS, TURNS)
def test_a_conversation_that_goes_on_begins_with_the_same_links(
    turns: list[tuple[str, str]], more: list[tuple[str, str]]
) -> None:
    before, after = hint_of(body(turns)), hint_of(body([*turns, *more]))
    assert list(after.chain[: len(before.chain)]) == list(before.chain)
    assert after.tokens >= before.tokens


@given(TURNS)
def test_another_beginning_shares_no_link(turns: list[tuple[str, str]]) -> None:
    other = [("user", "quite another beginning"), *turns]
    assert not set(hint_of(body(turns)).chain) & set(hint_of(body(other)).chain)


def test_a_long_prompt_is_matched_in_its_middle() -> None:
    handbook = "".join(f"paragraph {number} of the handbook. " for number in range(400))
    one, two = hint_of({"prompt": handbook + "first question"}), hint_of({"prompt": handbook + "second question"})
    shared = sum(a == b for a, b in zip(one.chain, two.chain, strict=False))
    assert 0 < len(one.chain) - shared <= 1


def test_no_prompt_makes_more_links_than_are_kept_in_mind() -> None:
    assert len(hint_of({"prompt": "x" * 10_000_000}).chain) <= MAX_LINKS
    assert len(hint_of(body([("user", "x")] * 5000)).chain) <= MAX_LINKS


def test_no_request_counts_as_less_than_nothing() -> None:
    assert hint_of({"input": "x", "max_tokens": -(10**18)}).tokens >= 0


def test_the_longest_known_beginning_decides_and_the_index_stays_small() -> None:
    index = PrefixIndex(limit=10)
    index.sent([1, 2], 0b01)
    index.sent([1, 2, 3], 0b10)
    assert index.longest([1, 2, 3, 4]) == 0b10
    assert index.longest([1, 2, 9]) == 0b11
    assert index.longest([7]) == 0
    index.forget(0b10)
    assert index.longest([1, 2, 3]) == 0b01
    for link in range(100, 200):
        index.sent([link], 0b01)
    assert len(index) == 10


@given(st.sets(st.text(min_size=1), min_size=2, max_size=8), st.text())
def test_a_member_that_leaves_moves_only_its_own_keys(names: set[str], key: str) -> None:
    members = {name: number for number, name in enumerate(sorted(names))}
    walk = list(Ring(members).walk(key))
    assert sorted(walk) == sorted(members.values())
    gone = walk[-1]
    rest = {name: number for name, number in members.items() if number != gone}
    assert next(iter(Ring(rest).walk(key))) == walk[0]


def test_whatever_stands_where_turns_should_is_no_error() -> None:
    for odd in (5, 0.5, True, {"a": 1}, "text", [5, None]):
        for name in ("messages", "input", "prompt", "system", "tools", "query", "documents"):
            assert hint_of({name: odd}).tokens >= 0


def test_every_routes_prompt_has_its_size() -> None:
    text = "x" * 400
    for prompt in (
        {"prompt": text},
        {"prompt": [text[:200], text[200:]]},
        {"input": text},
        {"query": text[:100], "documents": [text[100:200], text[200:]]},
        {"text_1": text[:200], "text_2": text[200:]},
        {"queries": [text[:200]], "items": [text[200:]]},
        {"data_1": text[:200], "data_2": [text[200:]]},
    ):
        assert hint_of(prompt).prompt_tokens == 100, prompt
    plain = {"messages": [{"role": "user", "content": text}]}
    assert hint_of(plain | {"documents": [text]}).prompt_tokens == hint_of(plain).prompt_tokens + 100


def test_equal_prompts_of_different_salts_share_no_link() -> None:
    turns = [("user", "a"), ("assistant", "b" * 3000)]
    plain, ours, theirs = (set(hint_of(body(turns) | salt).chain) for salt in ({}, salted("x"), salted("y")))
    assert not plain & ours
    assert not ours & theirs
    assert ours == set(hint_of(body(turns) | salted("x")).chain)


def salted(salt: str) -> dict[str, object]:
    return {"cache_salt": salt}
