"""Moving average of each batch's min and max (arXiv 1712.05877, section 3.1): one odd batch moves the range a
little.

After n batches with extremes x_1 … x_n and momentum a, the state is the raw sum ``r_n = Σ (1 − a) a^(n−i)
x_i`` and n; the average is ``r_n / (1 − a^n)``. The division takes away the pull toward the starting value 0
(Adam's debiasing, arXiv 1412.6980, section 3), so that one batch gives its own range. A run A followed by a
run B has the raw sum ``a^(n_B) r_A + r_B``: merging is associative up to float64 rounding. It is not
commutative, as order is the point.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import Rows, Statistic
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import Granularity
from fewbit.numbers.spec import QSpec


class MovingAverage(Statistic):
    """The raw moving sums of the extremes, float64 ``[blocks]`` each, and the number of batches.

    Raises:
        FewbitError: The momentum is not in [0, 1).
    """

    promise = "ordered"

    def __init__(self, granularity: Granularity, momentum: float = 0.9, name: str = "tensor") -> None:
        super().__init__(granularity, name)
        if not 0 <= momentum < 1:
            raise FewbitError(f"the momentum of a moving average is at least 0 and below 1, not {momentum}")
        self.momentum = momentum
        self.updates = 0
        self.raw_low = torch.empty(0, dtype=torch.float64)
        self.raw_high = torch.empty(0, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Take in one batch; see :meth:`Statistic.update`."""
        super().update(x)
        self.updates += 1

    def averages(self) -> tuple[Tensor, Tensor]:
        """The debiased averages of the batches' min and max, float64 ``[blocks]`` each."""
        weight = 1 - self.momentum**self.updates
        # The rounding of the sums must not carry an average of equal values beyond them.
        low = (self.raw_low / weight).clamp(self.low.double(), self.high.double())
        return low, (self.raw_high / weight).clamp(self.low.double(), self.high.double())

    def _settings(self) -> tuple[object, ...]:
        return (self.granularity, self.momentum)

    def _allocate(self, blocks: int) -> None:
        self.raw_low = torch.zeros(blocks, dtype=torch.float64)
        self.raw_high = torch.zeros(blocks, dtype=torch.float64)

    def _add(self, rows: Rows, values: Tensor, low: Tensor, high: Tensor) -> None:
        share = 1 - self.momentum
        self.raw_low[rows] = self.momentum * self.raw_low[rows] + share * low.double()
        self.raw_high[rows] = self.momentum * self.raw_high[rows] + share * high.double()

    def _absorb(self, other: Self) -> None:
        faded = self.momentum**other.updates
        self.raw_low = faded * self.raw_low + other.raw_low
        self.raw_high = faded * self.raw_high + other.raw_high
        self.updates += other.updates


@dataclass(frozen=True)
class Options:
    """How much of the old average a new batch leaves: at 0.9 the last ten batches or so decide.

    Attributes:
        momentum: At least 0 (only the last batch) and below 1.
    """

    momentum: float = 0.9


def statistic_key(options: Options) -> Hashable:
    """Calibrators of the same key share one statistic."""
    return ("moving_average", options.momentum)


def new_statistic(granularity: Granularity, options: Options, name: str = "tensor") -> MovingAverage:
    """An empty statistic."""
    return MovingAverage(granularity, options.momentum, name)


def solve(statistic: MovingAverage, spec: QSpec, options: Options) -> Range:
    """The averaged range of each block.

    Raises:
        FewbitError: The statistic saw no data.
    """
    shape = statistic.seen()
    low, high = statistic.averages()
    return Range.of(low, high, spec, shape)
