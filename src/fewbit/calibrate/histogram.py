"""A streaming histogram of each block whose range grows by merging bins, so that merging histograms is exact.

The B bins lie symmetric about 0 and cover ``[-R, R)``: value x is in bin ``floor(x / w) + B/2``, ``w =
2R/B``. R is a power of two with ``R/2 <= max |x| < R``, so w is one too and ``x / w`` is exact. When data
reaches R, R doubles and neighbouring bins merge in pairs; counts are integers and nothing is interpolated.
The counts are therefore those that R, had it been right from the start, would have given: they do not depend
on the order of the data, on how it was cut into batches, or on the tree in which histograms were merged.
(One exception: a negative value so small that ``x / w`` underflows float32 is counted as 0.)

**Resolution.** From ``max |x| >= R/2`` follows ``w = 2R/B <= 4 max |x| / B``: with the default 16384 bins a
bin is at most ``max |x| / 4096`` wide. Blocks with ``max |x| < 2^-115``, for which the reciprocal of w would
overflow float32, keep ``w = 2^-127``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, Self

import torch
from torch import Tensor

from fewbit.calibrate.statistic import Rows, Statistic
from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.numbers.granularity import Granularity, PerTensor

DEFAULT_BINS = 16384
_MAX_EXPONENT_OF_RECIPROCAL = 127


class Histogram(Statistic):
    """Counts of each block, int64 ``[blocks, bins]`` (128 KiB a block by default), and the exact extremes.

    Args:
        granularity: What a block is.
        bins: A power of two, at least 4.
        name: The tensor's name in errors.

    Raises:
        FewbitError: ``bins`` is not a power of two of at least 4.
    """

    promise = "exact"

    def __init__(self, granularity: Granularity, bins: int = DEFAULT_BINS, name: str = "tensor") -> None:
        super().__init__(granularity, name)
        if bins < 4 or bins & (bins - 1):
            raise FewbitError(f"a histogram has a power of two of bins, at least 4, not {bins}")
        self.bins = bins
        self.counts = torch.empty(0, bins, dtype=torch.int64)
        self.exponent = torch.empty(0, dtype=torch.int64)  # R = 2^exponent

    @property
    def width(self) -> Tensor:
        """Width w of a bin of each block, float64 ``[blocks]``."""
        return _power_of_two(self.exponent - self._log2_half)

    def folded(self) -> Tensor:
        """Counts of ``|x|`` in ``[jw, (j+1)w]``, int64 ``[blocks, bins/2]``; -jw counts as below jw."""
        half = self.bins // 2
        return self.counts[:, half:] + self.counts[:, :half].flip(1)

    def centres(self, block: int) -> tuple[Tensor, Tensor]:
        """The bins of one block that hold data: centres pulled into the data's range, and counts.

        Returns:
            float64 ``[k]`` and int64 ``[k]``.
        """
        held = self.counts[block].nonzero().squeeze(1)
        centres = (held - self.bins // 2 + 0.5).double() * self.width[block]
        return centres.clamp(self.low[block].double(), self.high[block].double()), self.counts[block, held]

    def coarse(self, bins_a_side: int) -> Tensor:
        """Equal bins over ``[-max |x|, max |x|]``, from cumulative counts interpolated linearly.

        Returns:
            float64 ``[blocks, 2 · bins_a_side]``; a row sums to its count. A block of zeros has it all
            in its last bin.
        """
        total = self.counts.cumsum(1).double()
        cumulative = torch.nn.functional.pad(total, (1, 0))  # mass below each edge of a fine bin
        steps = torch.arange(-bins_a_side, bins_a_side + 1, dtype=torch.float64) / bins_a_side
        edges = (self.amax.double() / self.width).unsqueeze(1) * steps + self.bins // 2
        below = edges.floor().clamp(0, self.bins - 1)
        index = below.to(torch.int64)
        left, right = cumulative.gather(1, index), cumulative.gather(1, index + 1)
        mass = left + (edges - below) * (right - left)
        mass[:, 0], mass[:, -1] = 0, total[:, -1]
        return mass.diff(dim=1)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one tensor; see :meth:`Statistic.update`."""
        dense = self.count > 0 and x.dtype == torch.float32 and x.is_contiguous() and x.is_cpu
        whole = dense and x.numel() and isinstance(self.granularity, PerTensor)
        if whole and dispatch.histogram_grow(
            x.detach().view(1, -1), self.counts, self.exponent, self.low, self.high
        ):  # one call, as the steps of the general way cost as much as counting 100 000 values
            self.count += x.numel()
        else:
            super().update(x)

    @property
    def _log2_half(self) -> int:
        return self.bins.bit_length() - 2

    def _settings(self) -> tuple[object, ...]:
        return (self.granularity, self.bins)

    def _allocate(self, blocks: int) -> None:
        self.counts = torch.zeros(blocks, self.bins, dtype=torch.int64)
        lowest = self._log2_half - _MAX_EXPONENT_OF_RECIPROCAL
        self.exponent = torch.full((blocks,), lowest, dtype=torch.int64)

    def _add(self, rows: Rows, values: Tensor, low: Tensor, high: Tensor) -> None:
        if self.exponent.shape[0] == 1:
            dispatch.histogram_grow(values.to(torch.float32), self.counts, self.exponent, low.clone(), high.clone())
            return
        amax = torch.maximum(low.abs(), high.abs())
        _, needed = torch.frexp(amax)  # amax < 2^needed, strictly
        wanted = self.exponent.clone()
        wanted[rows] = torch.where(amax > 0, torch.maximum(wanted[rows], needed), wanted[rows])
        self._widen(wanted)
        reciprocal = _power_of_two(self._log2_half - self.exponent[rows]).float()
        counts = self.counts[rows]  # a view for a slice, a copy for an index
        dispatch.histogram_rows(values.to(torch.float32), reciprocal, counts)
        if isinstance(rows, Tensor):
            self.counts[rows] = counts

    def _absorb(self, other: Self) -> None:
        wanted = torch.maximum(self.exponent, other.exponent)
        self._widen(wanted)
        self.counts += dispatch.rebin_rows(other.counts.clone(), wanted - other.exponent)

    def _widen(self, wanted: Tensor) -> None:
        """Double the ranges until ``exponent`` is ``wanted``."""
        grown = (wanted > self.exponent).nonzero().squeeze(1)
        if len(grown):
            self.counts[grown] = dispatch.rebin_rows(self.counts[grown], (wanted - self.exponent)[grown])
            self.exponent = wanted


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2^exponent`` in float64, exact: the exponent field of IEEE 754 alone."""
    return ((exponent + 1023) << 52).view(torch.float64)


class Binned(Protocol):
    """The options of a calibrator that looks at a histogram."""

    @property
    def bins(self) -> int:
        """Of each block."""


def statistic_key(options: Binned) -> Hashable:
    """Calibrators of the same key share one statistic."""
    return ("histogram", options.bins)


def new_statistic(granularity: Granularity, options: Binned, name: str = "tensor") -> Histogram:
    """An empty statistic."""
    return Histogram(granularity, options.bins, name)
