"""Outlier-aware: the range of everything but rare values far from the rest.

Values further than ``reach`` times the distance between the quartiles beyond them are far out (J. W. Tukey,
"Exploratory Data Analysis", 1977, section 2D, calls 3 such distances far out). Where they are rare, at most the share
``rare`` of all values at their side of the data, the range ends at the last value before them; where there are more,
they are a tail and not outliers, and the range ends where ``rare`` of the values are left outside. Data without
outliers gets its whole range, unlike with a percentile.

Exact zeros cost nothing at any scale, and ReLU leaves so many of them that both quartiles would be 0: they are left
out of the quartiles, as are values that share their bin. Under a symmetric spec magnitudes are looked at, as
``[-c, c]`` has one end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram, new_statistic, statistic_key
from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

__all__ = ["Options", "new_statistic", "solve", "statistic_key"]


@dataclass(frozen=True)
class Options:
    """What an outlier is.

    Attributes:
        reach: Distances between the quartiles, beyond them, at which far out begins; at least 0.
        rare: The largest share of values that is left outside at one end, at least 0 and below 1.
        bins: Bins of the streaming histogram.

    Raises:
        FewbitError: A number is out of its range.
    """

    reach: float = 6.0
    rare: float = 1e-4
    bins: int = DEFAULT_BINS

    def __post_init__(self) -> None:
        if not (self.reach >= 0 and 0 <= self.rare < 1):
            raise FewbitError(f"reach is at least 0 and rare in [0, 1), not {self.reach} and {self.rare}")


def solve(statistic: Histogram, spec: QSpec, options: Options) -> Range:
    """The range of each block without its outliers.

    Raises:
        FewbitError: The statistic saw no data.
    """
    shape = statistic.seen()
    base = Range.of(statistic.low, statistic.high, spec)
    lo, hi = base.lo.clone(), base.hi.clone()
    for block in (base.hi > base.lo).nonzero().squeeze(1).tolist():
        values, counts = statistic.centres(block)
        width = float(statistic.width[block])
        if spec.symmetric:
            order = values.abs().sort()
            hi[block] = min(float(hi[block]), _end(order.values, counts[order.indices], width, options))
            lo[block] = -hi[block]
        else:
            hi[block] = min(float(hi[block]), max(0.0, _end(values, counts, width, options)))
            lo[block] = max(float(lo[block]), min(0.0, -_end(-values.flip(0), counts.flip(0), width, options)))
    return Range.of(lo, hi, spec, shape)


def _end(values: Tensor, counts: Tensor, width: float, options: Options) -> float:
    """Where the range ends above; infinity where nothing is left outside.

    Args:
        values: Rising, float64 ``[k]``.
        counts: How often each is there.
        width: What values may differ from their places by; those nearer to 0 count as zeros.
        options: What an outlier is.
    """
    real = values.abs() > width
    if not bool(real.any()):
        return torch.inf
    inside = torch.where(real, counts, 0).cumsum(0)
    total = int(inside[-1])
    low, high = (values[int(torch.searchsorted(inside, share * total))] for share in (0.25, 0.75))
    fence = float(high + options.reach * (high - low))
    outside = counts.flip(0).cumsum(0).flip(0)  # of each value and those above
    enough = (values <= fence) | (outside > options.rare * int(counts.sum()))
    last = int(enough.nonzero().max()) if bool(enough.any()) else 0
    return torch.inf if last == len(values) - 1 else float(values[last] + width / 2)
