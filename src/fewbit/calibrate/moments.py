"""Streaming moments: count, mean, mean magnitude and variance of each block, in float64.

Pieces are combined by the parallel formula of Chan, Golub and LeVeque (1979): with ``d = m_B − m_A``, ``m =
m_A + d n_B/n`` and ``M2 = M2_A + M2_B + d² n_A n_B / n``, in which no large sums cancel. Merging is
associative and commutative up to float64 rounding; the counts and the extremes are exact.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fewbit.calibrate.statistic import Rows, Statistic, tiles
from fewbit.numbers.granularity import Granularity

_AT_ONCE = 32767  # widened at a time; from 32768 on torch shares a sum among threads, and its bits with them


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
        for part, columns in tiles(values, _AT_ONCE):
            tile = values[part, columns].double()
            which = rows[part] if isinstance(rows, Tensor) else part
            mean = tile.mean(1)
            squares = (tile - mean.unsqueeze(1)).square_().sum(1)
            self._combine(which, torch.tensor(tile.shape[1]), mean, squares)
            self.nonzero[which] += tile.count_nonzero(1)
            self.magnitude[which] += tile.abs_().sum(1)

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
