"""What is known of a replica's cache, beside a naive twin that keeps every prompt whole."""

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given

from engine.cached import BlockHash, Cached

SIZE = 2


class Twin:
    """Every block with all the tokens from the prompt's begin to its end."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.prompts: dict[BlockHash, tuple[int, ...]] = {}
        self.copies: dict[BlockHash, int] = {}

    def stored(self, names: Sequence[BlockHash], parent: BlockHash | None, tokens: Sequence[int], size: int) -> None:
        if parent is not None and parent not in self.prompts:
            return
        prompt = self.prompts[parent] if parent is not None else ()
        for number, name in enumerate(names):
            prompt += tuple(tokens[number * size : number * size + size])
            if name in self.prompts:
                self.copies[name] += 1
            elif len(self.prompts) == self.max_blocks:
                return
            else:
                self.prompts[name], self.copies[name] = prompt, 1

    def removed(self, names: Sequence[BlockHash]) -> None:
        for name in names:
            if name in self.prompts:
                self.copies[name] -= 1
                if not self.copies[name]:
                    del self.prompts[name], self.copies[name]

    def cleared(self) -> None:
        self.prompts.clear()
        self.copies.clear()

    def matched(self, tokens: Sequence[int]) -> int:
        known = set(self.prompts.values())
        end = 0
        while end + SIZE <= len(tokens) and tuple(tokens[: end + SIZE]) in known:
            end += SIZE
        return end


names = st.integers(0, 7) | st.sampled_from([b"x", b"y"])
token = st.integers(0, 1)
stores = st.lists(st.tuples(names, token, token), max_size=4).flatmap(
    lambda blocks: st.tuples(
        st.just("stored"),
        st.just([name for name, _, _ in blocks]),
        st.none() | names,
        st.just([one for _, *two in blocks for one in two]),
    )
)
removes = st.tuples(st.just("removed"), st.lists(names, max_size=3))
histories = st.lists(stores | removes | st.just(("cleared",)), max_size=25)


@given(histories, st.integers(1, 12), st.lists(st.lists(token, max_size=9), max_size=6))
def test_any_history_leaves_what_a_naive_twin_has(
    history: list[tuple[str, list[BlockHash], BlockHash | None, list[int]]], max_blocks: int, prompts: list[list[int]]
) -> None:
    cached, twin = Cached(max_blocks), Twin(max_blocks)
    for what, *how in history:
        size = [SIZE] if what == "stored" else []
        getattr(cached, what)(*how, *size)
        getattr(twin, what)(*how, *size)
        assert len(cached) == len(twin.prompts) <= max_blocks
        for prompt in [*prompts, *map(list, twin.prompts.values())]:
            assert cached.matched(prompt) == twin.matched(prompt)


def test_whole_blocks_of_a_prompts_begin_are_matched() -> None:
    cached = Cached()
    cached.stored([1, 2], None, [5, 6, 7, 8], 2)
    assert [cached.matched(prompt) for prompt in ([5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 1, 8], [6, 7], [5], [])] == [
        4, 2, 2, 0, 0, 0,
    ]  # fmt: skip


def test_the_same_tokens_after_another_begin_are_another_block() -> None:
    cached = Cached()
    cached.stored([1, 2], None, [5, 6, 7, 8], 2)
    assert cached.matched([7, 8]) == 0


def test_a_block_computed_twice_is_there_until_both_copies_are_gone() -> None:
    cached = Cached()
    for _ in range(2):
        cached.stored([1], None, [5, 6], 2)
    cached.removed([1])
    assert cached.matched([5, 6]) == 2
    cached.removed([1])
    assert cached.matched([5, 6]) == 0


def test_a_hole_ends_the_match_until_it_is_filled() -> None:
    cached = Cached()
    cached.stored([1, 2], None, [5, 6, 7, 8], 2)
    cached.removed([1])
    assert cached.matched([5, 6, 7, 8]) == 0
    cached.stored([1], None, [5, 6], 2)
    assert cached.matched([5, 6, 7, 8]) == 4


def test_a_block_that_follows_an_unknown_one_is_left_out() -> None:
    cached = Cached()
    cached.stored([2], 1, [7, 8], 2)
    assert len(cached) == 0


def test_blocks_of_another_size_are_left_out_until_nothing_is_left() -> None:
    cached = Cached()
    cached.stored([1], None, [5, 6], 2)
    cached.stored([2], None, [5, 6, 7], 3)
    assert cached.matched([5, 6, 7]) == 2
    cached.cleared()
    cached.stored([2], None, [5, 6, 7], 3)
    assert cached.matched([5, 6, 7]) == 3


def test_prompts_of_different_salts_have_no_block_in_common() -> None:
    cached = Cached()
    cached.stored([1], None, [5, 6], 2, "ours")
    cached.stored([2], 1, [7, 8], 2)
    cached.stored([3], None, [5, 6], 2)
    assert [cached.matched([5, 6, 7, 8], salt) for salt in ("ours", "theirs", "")] == [4, 0, 2]
    cached.removed([1])
    assert [cached.matched([5, 6, 7, 8], salt) for salt in ("ours", "")] == [0, 2]
