"""A shelf beside a naive one: never more bytes than allowed, nothing too old, the unused go first."""

import time

from hypothesis import given
from hypothesis import strategies as st

from serving.recording import Recorded
from serving.shelf import Shelf

SPACE = 100
Step = tuple[bool, int, int]


def answer(size: int) -> Recorded:
    return Recorded(200, [], [b""], True, size)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 130))))
def test_it_does_what_a_naive_one_does(steps: list[Step]) -> None:
    shelf = Shelf(SPACE, 60)
    naive: list[tuple[int, Recorded]] = []  # the last used is the last
    for keep, number, size in steps:
        key = ("t", b"%d" % number)
        before = next((kept for kept in naive if kept[0] == number), None)
        if keep:
            naive = [kept for kept in naive if kept[0] != number]
            new = answer(size)
            shelf.keep(key, b"", new)
            if size <= SPACE:
                naive.append((number, new))
            while sum(kept.size for _, kept in naive) > SPACE:
                naive.pop(0)
        else:
            found = shelf.find(key)
            assert (found.answer if found else None) is (before[1] if before else None)
            if before:
                naive.remove(before)
                naive.append(before)
        assert shelf.size == sum(kept.size for _, kept in naive) <= SPACE
        assert len(shelf) == len(naive)


def test_what_is_too_old_is_gone_with_its_bytes() -> None:
    shelf = Shelf(SPACE, 0.02)
    shelf.keep(("t", b"k"), b"", answer(10))
    assert shelf.find(("t", b"k"))
    assert shelf.find(("other", b"k")) is None
    time.sleep(0.03)
    assert shelf.find(("t", b"k")) is None
    assert shelf.size == 0
