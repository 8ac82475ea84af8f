"""A shelf beside a naive one: never more bytes than allowed, nothing too old, the largest share gives up first."""

import time

from hypothesis import given
from hypothesis import strategies as st

from serving.recording import Recorded
from serving.shelf import SPARE_CLAIMS, Key, Shelf

SPACE = 100
Step = tuple[bool, str, int, int]


def answer(size: int) -> Recorded:
    return Recorded(200, [], [b""], True, size)


def largest(naive: list[tuple[Key, Recorded]]) -> str:
    """By adding everything up."""
    tenants = {tenant for (tenant, _), _ in naive}
    return min(tenants, key=lambda one: (-sum(kept.size for (tenant, _), kept in naive if tenant == one), one))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 4), st.integers(1, 130)), max_size=200))
def test_it_does_what_a_naive_one_does(steps: list[Step]) -> None:
    shelf = Shelf(SPACE, 60)
    naive: list[tuple[Key, Recorded]] = []  # the last used is the last
    for keep, tenant, number, size in steps:
        key = (tenant, b"%d" % number)
        before = next((kept for kept in naive if kept[0] == key), None)
        if keep:
            naive = [kept for kept in naive if kept[0] != key]
            new = answer(size)
            shelf.keep(key, b"", new)
            if size <= SPACE:
                naive.append((key, new))
            while sum(kept.size for _, kept in naive) > SPACE:
                giving = largest(naive)
                naive.remove(next(kept for kept in naive if kept[0][0] == giving))
        else:
            found = shelf.find(key)
            assert (found.answer if found else None) is (before[1] if before else None)
            if before:
                naive.remove(before)
                naive.append(before)
        assert shelf.size == sum(kept.size for _, kept in naive) <= SPACE
        assert len(shelf) == len(naive)
    assert {key for key, _ in naive} == {(t, b"%d" % n) for t in "abc" for n in range(5) if shelf.find((t, b"%d" % n))}


def test_a_tenant_that_keeps_without_end_pushes_out_only_its_own() -> None:
    shelf = Shelf(SPACE, 60)
    mine = [("small", b"%d" % number) for number in range(3)]
    for key in mine:
        shelf.keep(key, b"", answer(10))
    for number in range(1000):
        shelf.keep(("greedy", b"%d" % number), b"", answer(10))
    assert all(shelf.find(key) for key in mine)
    kept = [number for number in range(1000) if shelf.find(("greedy", b"%d" % number))]
    assert kept == list(range(993, 1000))


def test_many_tenants_share_alike_and_what_is_noted_of_them_stays_small() -> None:
    shelf = Shelf(SPACE, 60)
    for number in range(5000):
        shelf.keep((str(number % 7), b"%d" % (number // 7 % 3)), b"", answer(1 + number % 9))
    assert all(any(shelf.find((str(tenant), b"%d" % name)) for name in range(3)) for tenant in range(7))
    assert len(shelf._claims) <= 2 * 7 + SPARE_CLAIMS


def test_what_is_too_old_is_gone_with_its_bytes() -> None:
    shelf = Shelf(SPACE, 0.02)
    shelf.keep(("t", b"k"), b"", answer(10))
    assert shelf.find(("t", b"k"))
    assert shelf.find(("other", b"k")) is None
    time.sleep(0.03)
    assert shelf.find(("t", b"k")) is None
    assert shelf.size == 0
