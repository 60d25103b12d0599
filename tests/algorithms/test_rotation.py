"""Hadamard matrices and rotations are what they are called."""

from __future__ import annotations

import pytest
import torch

from fewbit.algorithms.rotation import hadamard, rotation

KNOWN = [1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 80, 96, 128, 256, 384, 576, 640]


@pytest.mark.parametrize("size", KNOWN)
def test_rows_of_ones_are_orthogonal(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 5, 6, 7, 10, 28, 36, 50])
def test_sizes_without_a_construction(size: int) -> None:
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 50, 64, 96, 640])
def test_rotations_are_orthogonal_and_always_the_same(size: int) -> None:
    q = rotation(size)
    assert torch.allclose(q @ q.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(q, rotation(size))


def test_an_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(640, dtype=torch.float64)
    x[17] = 100
    rotated = x @ rotation(640)
    assert float(rotated.abs().max()) == pytest.approx(100 / 640**0.5)
    assert float(rotated.norm()) == pytest.approx(100)
