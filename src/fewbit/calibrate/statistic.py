"""What every statistic shares: the checks, the split into blocks, the exact extremes, update and merge.

A statistic sees data in pieces and keeps a state of fixed size. ``a.merge(b)`` is the statistic of the data
of ``a`` followed by that of ``b``; it is associative, so that any number of processes and any tree of merges
will do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import product
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.numbers.granularity import Granularity, PerGroup

Rows = Tensor | slice
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dense_parts(x: Tensor, granularity: Granularity) -> list[tuple[Rows, Tensor]]:
    """The blocks of ``x`` without padding: which blocks, and their values ``[blocks, values]``.

    Only a ragged last group of each row is shorter than the others, so there are one or two such parts.
    """
    blocks = granularity.to_blocks(x).contiguous()
    shape = tuple(x.shape)
    missing = granularity.padded_shape(shape)[-1] - shape[-1] if isinstance(granularity, PerGroup) else 0
    if not missing:
        return [(slice(None), blocks)]
    groups = granularity.scale_shape(shape)[-1]
    index = torch.arange(len(blocks))
    tail = index % groups == groups - 1
    parts: list[tuple[Rows, Tensor]] = [(index[tail], blocks[tail, : blocks.shape[1] - missing].contiguous())]
    return [(index[~tail], blocks[~tail]), *parts] if groups > 1 else parts


def tiles(matrix: Tensor, values: int) -> Iterator[tuple[slice, slice]]:
    """Pieces (rows, columns) of a matrix, row after row, of at most ``values`` values each."""
    wide = min(matrix.shape[1], values)
    high = max(1, values // wide)
    for row, column in product(range(0, matrix.shape[0], high), range(0, matrix.shape[1], wide)):
        yield slice(row, row + high), slice(column, column + wide)


def checked(x: Tensor, name: str) -> Tensor:
    """``x`` on the CPU, detached, in float32, float16 or bfloat16.

    Raises:
        FewbitError: ``x`` is empty or not floating.
    """
    if not x.is_floating_point():
        raise FewbitError(f"{name} has dtype {x.dtype}; only floating tensors are calibrated")
    if x.numel() == 0:
        raise FewbitError(f"{name} is empty (shape {tuple(x.shape)}); there is nothing to calibrate on")
    x = x.detach()
    return x.to("cpu", x.dtype if x.dtype in _KERNEL_DTYPES else torch.float32)


def extremes(values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each row, float32 ``[rows]`` each.

    Raises:
        FewbitError: A value is NaN or infinite (or beyond float32).
    """
    ends = dispatch.minmax_rows(values)
    low, high = ends.unbind(1)
    if ends.shape[0] == 1 and all(map(math.isfinite, ends.flatten().tolist())):
        return low, high
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        kind = "NaN" if bool((torch.isnan(low) | torch.isnan(high)).any()) else "infinity"
        raise FewbitError(f"{name} holds {kind}; its calibration data must be finite")
    return low, high


class Statistic:
    """Base of the statistics: the extremes of each block, and the frame that a subclass fills.

    Attributes:
        promise: What the state depends on. ``exact``: on the data alone, bit for bit, whatever the batches,
            their order and the tree of merges; ``rounded``: as exact, but for float64 rounding; ``ordered``: on
            the batches and their order too, and merging is associative up to rounding.
        name: The tensor's name in errors.
        scale_shape: Shape of one value a block, or None before the first update.
        count: Values seen, all blocks together.
        low: Smallest value of each block, float32 ``[blocks]``, exact.
        high: Largest value of each block, float32 ``[blocks]``, exact.
    """

    promise: ClassVar[Literal["exact", "rounded", "ordered"]]

    def __init__(self, granularity: Granularity, name: str = "tensor") -> None:
        self.granularity = granularity
        self.name = name
        self.scale_shape: tuple[int, ...] | None = None
        self.count = 0
        self.low = torch.empty(0)
        self.high = torch.empty(0)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one floating tensor of any shape that has the same blocks as those before.

        Raises:
            FewbitError: ``x`` is empty, not floating, holds NaN or infinity, or has other blocks than before;
                nothing was taken in.
        """
        x = checked(x, self.name)
        shape = self.granularity.scale_shape(tuple(x.shape))
        if self.scale_shape not in (None, shape):
            raise FewbitError(
                f"{self.name} has blocks {shape} under {self.granularity} but {self.scale_shape} before; "
                "use a granularity that does not depend on the batch, such as tensor"
            )
        parts = dense_parts(x, self.granularity)
        limits = [extremes(values, self.name) for _, values in parts]  # refuse before anything changes
        if self.scale_shape is None:
            self._start(shape)
        for (rows, values), (low, high) in zip(parts, limits):
            if self.low.shape[0] == 1:
                self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            else:
                self.low[rows] = torch.minimum(self.low[rows], low)
                self.high[rows] = torch.maximum(self.high[rows], high)
            self._add(rows, values, low, high)
        self.count += x.numel()

    def merge(self, other: Self) -> Self:
        """The statistic of this data followed by the other's; neither of the two changes.

        Raises:
            FewbitError: The two are of different kinds, settings or blocks.
        """
        if type(self) is not type(other) or self._settings() != other._settings():
            raise FewbitError(f"statistics of {self.name} and {other.name} were made with different settings")
        if other.scale_shape is None:
            return copy.deepcopy(self)
        if self.scale_shape is None:
            return copy.deepcopy(other)
        if self.scale_shape != other.scale_shape:
            raise FewbitError(f"{self.name} has blocks {self.scale_shape} here and {other.scale_shape} there")
        merged = copy.deepcopy(self)
        merged.low = torch.minimum(self.low, other.low)
        merged.high = torch.maximum(self.high, other.high)
        merged.count += other.count
        merged._absorb(other)
        return merged

    def seen(self) -> tuple[int, ...]:
        """The shape of one value a block.

        Raises:
            FewbitError: There was no update.
        """
        if self.scale_shape is None:
            raise FewbitError(f"{self.name} saw no calibration data; pass at least one batch that reaches it")
        return self.scale_shape

    @property
    def amax(self) -> Tensor:
        """Largest magnitude of each block, float32 ``[blocks]``."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def _start(self, shape: tuple[int, ...]) -> None:
        self.scale_shape = shape
        blocks = torch.Size(shape).numel()
        self.low, self.high = torch.full((blocks,), torch.inf), torch.full((blocks,), -torch.inf)
        self._allocate(blocks)

    def _settings(self) -> tuple[object, ...]:
        """What two statistics must share to be merged."""
        return (self.granularity,)

    def _allocate(self, blocks: int) -> None:
        """Make the state of ``blocks`` blocks."""

    def _add(self, rows: Rows, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in contiguous ``values [rows, n]`` whose extremes by row are ``low`` and ``high``."""

    def _absorb(self, other: Self) -> None:
        """Take in the state of ``other``, which has the same blocks and comes later."""
