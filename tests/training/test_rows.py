"""Rows: every document once an epoch, whole, in an order that the seed decides."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from training.masking import Document
from training.rows import batch, endless, one_epoch
from training.schedule import share


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.text(max_size=5))
def test_an_epoch_has_every_document_once_and_no_row_is_too_long(lengths: list[int], seed: str) -> None:
    rows = list(one_epoch(lengths, 50, seed))

    assert sorted(one for row in rows for one in row) == list(range(len(lengths)))
    assert all(sum(lengths[one] for one in row) <= 50 for row in rows)
    assert rows == list(one_epoch(lengths, 50, seed))


def test_rows_are_nearly_full_and_epochs_differ() -> None:
    lengths = [length for length in range(5, 60) for _ in range(20)]
    rows = list(one_epoch(lengths, 128, "1/0"))

    assert sum(lengths) / (128 * len(rows)) > 0.95
    drawn = list(islice(endless(lengths, 128, "1"), 2 * len(rows)))
    assert drawn[: len(rows)] == rows
    assert drawn[len(rows)] != rows[0]
    assert all(len(row) == 1 for row in one_epoch(lengths, None, "1/0"))


def test_positions_restart_with_each_document_and_its_first_token_is_not_learned() -> None:
    rows = [[Document([5, 6, 7], [True] * 3), Document([8, 9], [False, True])], [Document([4], [False])]]
    packed = batch(rows, 0, packed=True)

    assert packed.tokens.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert packed.learned.tolist() == [[False, True, True, False, True], [False] * 5]
    assert packed.mask is None
    alone = batch(rows[1:], 0, packed=False).mask
    assert alone is not None
    assert alone.tolist() == [[True]]


def test_the_rate_rises_and_falls_to_its_share() -> None:
    for decay in ("linear", "cosine"):
        shares = [share(step, 20, 5, decay, 0.1) for step in range(20)]
        assert shares[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
        assert shares[5] == 1.0
        assert shares[5:] == sorted(shares[5:], reverse=True)
        assert abs(shares[-1] - 0.1) < 1e-12
    assert {share(step, 20, 0, "none", 0.1) for step in range(20)} == {1.0}
