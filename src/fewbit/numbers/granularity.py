"""How many values share one scale, and the only reshaping to and from those blocks.

========== =================== =======================================================
spec       scale shape         block
========== =================== =======================================================
tensor     ``()``              the whole tensor
channel    ``(C,)``            all values of one index of axis 0 (``channel1``: axis 1)
g128       ``(*lead, groups)`` 128 neighbours along the last axis, the tail padded with 0
token      ``shape[:-1]``      one row of the last axis
========== =================== =======================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fewbit.errors import FewbitError

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class PerTensor:
    """One scale for all."""

    def __str__(self) -> str:
        return "tensor"

    def scale_shape(self, shape: Shape) -> Shape:
        """Always ``()``."""
        return ()

    def padded_shape(self, shape: Shape) -> Shape:
        """Nothing is padded."""
        return shape

    def blocked(self, x: Tensor) -> Tensor:
        """A view of ``x`` that ``expand(scale)`` broadcasts to."""
        return x

    def unblocked(self, view: Tensor, shape: Shape) -> Tensor:
        """The padded tensor behind a blocked view."""
        return view

    def expand(self, scale: Tensor, ndim: int) -> Tensor:
        """The scale, broadcastable to ``blocked(x)``."""
        return scale

    def to_blocks(self, x: Tensor) -> Tensor:
        """``[n_blocks, block]``, blocks in the C order of the scale."""
        return x.reshape(1, -1)

    def from_blocks(self, blocks: Tensor, shape: Shape) -> Tensor:
        """The inverse of :meth:`to_blocks`, padding removed."""
        return blocks.reshape(shape)


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of ``axis``."""

    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis < 0:
            raise FewbitError(f"a channel axis is counted from the front, so {self.axis} is none")

    def __str__(self) -> str:
        return "channel" if self.axis == 0 else f"channel{self.axis}"

    def scale_shape(self, shape: Shape) -> Shape:
        """``(shape[axis],)``."""
        return (shape[self._axis(len(shape))],)

    def padded_shape(self, shape: Shape) -> Shape:
        """Nothing is padded."""
        return shape

    def blocked(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        self._axis(x.dim())
        return x

    def unblocked(self, view: Tensor, shape: Shape) -> Tensor:
        """``view`` itself."""
        return view

    def expand(self, scale: Tensor, ndim: int) -> Tensor:
        """``[1, …, C, …, 1]``."""
        shape = [1] * ndim
        shape[self._axis(ndim)] = -1
        return scale.reshape(shape)

    def to_blocks(self, x: Tensor) -> Tensor:
        """``[C, everything else]``."""
        channels = x.movedim(self._axis(x.dim()), 0)
        return channels.reshape(channels.shape[0], -1)

    def from_blocks(self, blocks: Tensor, shape: Shape) -> Tensor:
        """The inverse of :meth:`to_blocks`."""
        axis = self._axis(len(shape))
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return blocks.reshape(moved).movedim(0, axis)

    def _axis(self, ndim: int) -> int:
        if not self.axis < ndim:
            raise FewbitError(f"per channel on axis {self.axis} needs more than {ndim} dimensions")
        return self.axis


@dataclass(frozen=True)
class PerGroup:
    """One scale for each ``size`` neighbours along the last axis; a ragged tail is padded with zeros."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FewbitError(f"a group needs at least 1 value, not {self.size}")

    def __str__(self) -> str:
        return f"g{self.size}"

    def scale_shape(self, shape: Shape) -> Shape:
        """``(*shape[:-1], ceil(shape[-1] / size))``."""
        return (*shape[:-1], math.ceil(_last(shape, self) / self.size))

    def padded_shape(self, shape: Shape) -> Shape:
        """The last axis rounded up to whole groups."""
        return (*shape[:-1], math.ceil(_last(shape, self) / self.size) * self.size)

    def blocked(self, x: Tensor) -> Tensor:
        """``[*lead, groups, size]``, padded."""
        missing = -_last(tuple(x.shape), self) % self.size
        if missing:
            x = torch.nn.functional.pad(x, (0, missing))
        return x.reshape(*x.shape[:-1], -1, self.size)

    def unblocked(self, view: Tensor, shape: Shape) -> Tensor:
        """``[*lead, padded last axis]``."""
        return view.flatten(-2)

    def expand(self, scale: Tensor, ndim: int) -> Tensor:
        """``[*lead, groups, 1]``."""
        return scale.unsqueeze(-1)

    def to_blocks(self, x: Tensor) -> Tensor:
        """``[lead · groups, size]``, padded."""
        return self.blocked(x).reshape(-1, self.size)

    def from_blocks(self, blocks: Tensor, shape: Shape) -> Tensor:
        """The inverse of :meth:`to_blocks`, padding removed."""
        return blocks.reshape(self.padded_shape(shape))[..., : shape[-1]]


@dataclass(frozen=True)
class PerToken:
    """One scale for each row of the last axis (a token's features)."""

    def __str__(self) -> str:
        return "token"

    def scale_shape(self, shape: Shape) -> Shape:
        """``shape[:-1]``."""
        _last(shape, self)
        return shape[:-1]

    def padded_shape(self, shape: Shape) -> Shape:
        """Nothing is padded."""
        return shape

    def blocked(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def unblocked(self, view: Tensor, shape: Shape) -> Tensor:
        """``view`` itself."""
        return view

    def expand(self, scale: Tensor, ndim: int) -> Tensor:
        """``[*lead, 1]``."""
        return scale.unsqueeze(-1)

    def to_blocks(self, x: Tensor) -> Tensor:
        """``[tokens, features]``."""
        return x.reshape(-1, _last(tuple(x.shape), self))

    def from_blocks(self, blocks: Tensor, shape: Shape) -> Tensor:
        """The inverse of :meth:`to_blocks`."""
        return blocks.reshape(shape)


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup | PerToken


def parse(text: str) -> Granularity:
    """``tensor``, ``channel``, ``channel2``, ``g128``, ``token``.

    Raises:
        FewbitError: The text is none of these.
    """
    if text == "tensor":
        return PerTensor()
    if text == "token":
        return PerToken()
    if match := re.fullmatch(r"channel(\d?)", text):
        return PerChannel(int(match[1] or 0))
    if match := re.fullmatch(r"g(\d{1,9})", text):
        return PerGroup(int(match[1]))
    raise FewbitError(f"{text!r} is no granularity; write tensor, channel, channel1, g128 or token")


def _last(shape: Shape, granularity: object) -> int:
    if not shape:
        raise FewbitError(f"granularity {granularity} needs at least one dimension")
    return shape[-1]
