"""Percentile: clip so that p percent of the values stay inside; p = 99.9 by default.

Symmetric: the p-th percentile of ``|x|``. Asymmetric: data on both sides of 0 loses ``(100 − p)/2`` percent
at either end, data on one side loses it all at its outer end, as the other end is 0 and exact. A percentile
is that of ``numpy.percentile``: linear between the two order statistics around rank ``(n − 1) p / 100``.

For data at hand it is exact. From the streaming histogram each order statistic is known to be in its bin, so
the result is **within one bin, max |x| / 4096, of the exact percentile**
(:mod:`fewbit.calibrate.histogram`), and 100 percent is min-max exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram, new_statistic, statistic_key
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import checked, dense_parts, extremes
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

__all__ = ["Options", "new_statistic", "solve", "solve_tensor", "statistic_key"]

_SORTED_AT_ONCE = 1 << 22
OrderStatistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """How much stays inside.

    Attributes:
        percentile: Percent of the values inside the range, above 0 and at most 100 (min-max).
        bins: Bins of the streaming histogram.

    Raises:
        FewbitError: The percentile is outside (0, 100].
    """

    percentile: float = 99.9
    bins: int = DEFAULT_BINS

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise FewbitError(f"a percentile is above 0 and at most 100, not {self.percentile}")


def solve(statistic: Histogram, spec: QSpec, options: Options) -> Range:
    """The range of each block that holds ``options.percentile`` percent of the values, to within a bin.

    Raises:
        FewbitError: The statistic saw no data.
    """
    shape = statistic.seen()
    if spec.symmetric:
        read = _reader(statistic.folded(), statistic.width, 0.0, None, statistic.amax)
    else:
        first = -statistic.bins / 2
        read = _reader(statistic.counts, statistic.width, first, statistic.low, statistic.high)
    sizes = statistic.counts.sum(1)
    lo, hi = _interval(read, sizes, statistic.low, statistic.high, spec, options)
    return Range.of(lo, hi, spec, shape)


def solve_tensor(x: Tensor, spec: QSpec, options: Options, name: str = "tensor") -> Range:
    """The exact range of a tensor at hand, by sorting each block.

    Args:
        x: Floating tensor of any shape.
        spec: The quantization.
        options: The percentile.
        name: Named in errors.

    Raises:
        FewbitError: ``x`` is empty, not floating, or holds NaN or infinity.
    """
    x = checked(x, name)
    shape = spec.granularity.scale_shape(tuple(x.shape))
    lo = torch.empty(torch.Size(shape).numel(), dtype=torch.float64)
    hi = torch.empty_like(lo)
    for rows, values in dense_parts(x, spec.granularity):
        low, high = extremes(values, name)
        step = max(1, _SORTED_AT_ONCE // values.shape[1])
        at_once = [slice(i, i + step) for i in range(0, len(values), step)]
        solved = [_of_sorted(values[i], low[i], high[i], spec, options) for i in at_once]
        lo[rows], hi[rows] = (torch.cat(ends) for ends in zip(*solved))
    return Range.of(lo, hi, spec, shape)


def _of_sorted(values: Tensor, low: Tensor, high: Tensor, spec: QSpec, options: Options) -> tuple[Tensor, Tensor]:
    ordered = (values.abs() if spec.symmetric else values).sort(1).values
    sizes = torch.full((len(values),), values.shape[1])

    def read(rank: Tensor) -> Tensor:
        return ordered.gather(1, rank.unsqueeze(1)).squeeze(1)

    return _interval(read, sizes, low, high, spec, options)


def _interval(
    read: OrderStatistic, sizes: Tensor, low: Tensor, high: Tensor, spec: QSpec, options: Options
) -> tuple[Tensor, Tensor]:
    """Both ends from ``read``, ranks ``[blocks]`` to order statistics ``[blocks]`` of ``|x|`` or of x."""
    p = torch.full(sizes.shape, options.percentile, dtype=torch.float64)
    if spec.symmetric:
        clip = _percentile(read, sizes, p)
        return -clip, clip
    outside = 100 - p
    upper = torch.where(low >= 0, p, torch.where(high <= 0, 100.0, 100 - outside / 2))
    lower = torch.where(low >= 0, 0.0, torch.where(high <= 0, outside, outside / 2))
    return _percentile(read, sizes, lower), _percentile(read, sizes, upper)


def _percentile(read: OrderStatistic, sizes: Tensor, p: Tensor) -> Tensor:
    position = (sizes - 1) * p / 100
    rank = position.floor().to(torch.int64)
    below, above = read(rank).double(), read(torch.minimum(rank + 1, sizes - 1)).double()
    return below + (position - rank) * (above - below)


def _reader(counts: Tensor, width: Tensor, first: float, low: Tensor | None, high: Tensor) -> OrderStatistic:
    """Order statistics of counted values, even within a bin; the first bin begins at ``first · width``.

    The largest value ``high`` is known, the smallest, ``low``, if given.
    """
    cumulative = counts.cumsum(1)
    last = cumulative[:, -1] - 1

    def read(rank: Tensor) -> Tensor:
        column = rank.unsqueeze(1)
        index = torch.searchsorted(cumulative, column, right=True)
        held = counts.gather(1, index)
        inside = (column - (cumulative.gather(1, index) - held) + 0.5) / held
        value = torch.minimum((index + inside + first).squeeze(1) * width, high.double())
        if low is not None:
            value = torch.where(rank == 0, low.double(), torch.maximum(value, low.double()))
        return torch.where(rank == last, high.double(), value)

    return read
