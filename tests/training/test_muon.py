"""Muon's update: orthogonal, whatever the shape, and good at going downhill."""

import pytest
import torch

from training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 48), (32, 96), (96, 32), (192, 64)])
def test_all_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix))

    assert values.min() > 0.6
    assert values.max() < 1.3


def test_singular_vectors_stay() -> None:
    matrix = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ orthogonalized(matrix) @ vh.T

    assert torch.allclose(rotated, torch.diag(rotated.diagonal()), atol=1e-4)


def test_a_stack_of_matrices_is_orthogonalized_one_by_one() -> None:
    stack = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(2))
    one_by_one = torch.stack([orthogonalized(matrix) for matrix in stack])

    assert torch.allclose(orthogonalized(stack), one_by_one, atol=1e-6)


def test_a_step_moves_every_direction_by_about_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    weight.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(3)) * 1e-4
    Muon([weight], lr=0.1).step()

    assert torch.linalg.svdvals(weight.detach()) == pytest.approx([0.1] * 16, rel=0.4)


def test_it_finds_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(256, 12, generator=generator)
    truth = torch.randn(6, 12, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(6, 12))
    muon = Muon([weight], lr=0.1)
    for step in range(150):
        muon.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        muon.zero_grad()
        ((inputs @ (weight - truth).T) ** 2).mean().backward()  # type: ignore[no-untyped-call]
        muon.step()

    assert (weight - truth).norm() < 0.05 * truth.norm()
