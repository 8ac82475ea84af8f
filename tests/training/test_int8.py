"""Rounding to 8 bits."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.int8 import rounded, rounded_by_token

shapes = st.tuples(st.integers(1, 9), st.integers(1, 70))


@given(
    shapes, st.integers(0, 2**32), st.sampled_from([1e-6, 1.0, 1e4]), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_no_weight_moves_by_more_than_half_a_step(
    shape: tuple[int, int], seed: int, size: float, dtype: torch.dtype
) -> None:
    weight = (torch.randn(shape, generator=torch.manual_seed(seed)) * size).to(dtype)
    whole, scale = rounded(weight)
    assert (whole.dtype, whole.shape, scale.shape) == (torch.int8, shape, (shape[0], 1))
    assert int(whole.int().abs().max()) == 127
    assert ((whole * scale - weight.float()).abs() <= scale * 0.5001).all()


def test_an_output_without_weights_stays_without() -> None:
    whole, scale = rounded(torch.tensor([[0.0, 0.0], [1.0, -0.5]]))
    torch.testing.assert_close(whole * scale, torch.tensor([[0.0, 0.0], [1.0, -64 / 127]]))


def test_every_token_is_rounded_by_its_own_largest() -> None:
    found = rounded_by_token(torch.tensor([[[127.0, 1.4, -0.6], [1.27, 0.014, 0.0]], [[0.0, 0.0, 0.0]] * 2]))
    torch.testing.assert_close(found, torch.tensor([[[127.0, 1.0, -1.0], [1.27, 0.01, 0.0]], [[0.0, 0.0, 0.0]] * 2]))
