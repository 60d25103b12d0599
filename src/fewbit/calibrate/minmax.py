"""Min-max: the range of the data itself. Nothing is clipped, so one outlier widens every step.

The statistic is exact, and merging it is associative and commutative.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import Statistic
from fewbit.numbers.granularity import Granularity
from fewbit.numbers.spec import QSpec


class MinMax(Statistic):
    """Smallest and largest value of each block; 8 bytes a block."""

    promise = "exact"


@dataclass(frozen=True)
class Options:
    """Min-max has nothing to choose."""


def statistic_key(options: Options) -> Hashable:
    """Calibrators of the same key share one statistic."""
    return ("minmax",)


def new_statistic(granularity: Granularity, options: Options, name: str = "tensor") -> MinMax:
    """An empty statistic."""
    return MinMax(granularity, name)


def solve(statistic: Statistic, spec: QSpec, options: Options) -> Range:
    """The data's range; symmetric: ±max |x|; asymmetric: widened to hold 0.

    Args:
        statistic: Any statistic will do, as each keeps the exact extremes.
        spec: The quantization the range is for.
        options: Unused.

    Raises:
        FewbitError: The statistic saw no data.
    """
    shape = statistic.seen()
    return Range.of(statistic.low, statistic.high, spec, shape)
