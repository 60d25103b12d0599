"""Streaming moments: count, mean, mean magnitude and variance of each block, in float64.

Pieces are combined by the parallel formula of Chan, Golub and LeVeque (1979): with ``d = m_B − m_A``, ``m =
m_A + d n_B/n`` and ``M2 = M2_A + M2_B + d² n_A n_B / n``, in which no large sums cancel. Merging is
associative and commutative up to float64 rounding; the counts and the extremes are exact.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fewbit.calibrate.statistic import Rows, Statistic
from fewbit.numbers.granularity import Granularity

_CHUNK = 1 << 18  # values widened to float64 at a time


class Moments(Statistic):
    """Seven float64 or int64 numbers a block.

    Attributes:
        values: Values seen in each block, int64 ``[blocks]``.
        nonzero: Those that are not 0, int64 ``[blocks]``.
        mean: float64 ``[blocks]``.
        squares: Sum of squared deviations from the mean, float64 ``[blocks]``.
        magnitude: Sum of ``|x|``, float64 ``[blocks]``.
    """

    promise = "rounded"

    def __init__(self, granularity: Granularity, name: str = "tensor") -> None:
        super().__init__(granularity, name)
        self._allocate(0)

    @property
    def variance(self) -> Tensor:
        """Mean squared deviation from the mean, float64 ``[blocks]``."""
        return self.squares / self.values

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean of ``|x|``, float64 ``[blocks]``."""
        return self.magnitude / self.values

    @property
    def sum_of_squares(self) -> Tensor:
        """Sum of ``x²``, float64 ``[blocks]``."""
        return self.squares + self.values * self.mean.square()

    def _allocate(self, blocks: int) -> None:
        self.values = torch.zeros(blocks, dtype=torch.int64)
        self.nonzero = torch.zeros(blocks, dtype=torch.int64)
        self.mean = torch.zeros(blocks, dtype=torch.float64)
        self.squares = torch.zeros(blocks, dtype=torch.float64)
        self.magnitude = torch.zeros(blocks, dtype=torch.float64)

    def _add(self, rows: Rows, values: Tensor, low: Tensor, high: Tensor) -> None:
        for piece in torch.split(values, max(1, _CHUNK // len(values)), dim=1):
            wide = piece.double()
            mean = wide.mean(1)
            squares = (wide - mean.unsqueeze(1)).square().sum(1)
            self._combine(rows, torch.full_like(self.values[rows], piece.shape[1]), mean, squares)
            self.nonzero[rows] += wide.count_nonzero(1)
            self.magnitude[rows] += wide.abs().sum(1)

    def _absorb(self, other: Self) -> None:
        self._combine(slice(None), other.values, other.mean, other.squares)
        self.nonzero += other.nonzero
        self.magnitude += other.magnitude

    def _combine(self, rows: Rows, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        before = self.values[rows]
        total = before + count
        apart = mean - self.mean[rows]
        self.mean[rows] += apart * count / total
        self.squares[rows] += squares + apart.square() * before * count / total
        self.values[rows] = total
