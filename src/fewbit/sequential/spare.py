"""Large tensors that are done with, kept for the next of their shape.

Each of the leaves of a layer's sums has a matrix of its own, which the system would clear page by page before the first
sum enters it: with an eighth of 64 windows in each that took a sixth of the time of the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.kernels.pages import on_huge_pages

_MOST = 2**28  # bytes


class Spare:
    """Tensors on the CPU that nobody looks at any more, 256 MB at most."""

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}
        self._held = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with any values."""
        free = self._free.get((shape, dtype))
        if not free:
            return on_huge_pages(torch.empty(shape, dtype=dtype))
        self._held -= free[-1].nbytes
        return free.pop()

    def give(self, tensor: Tensor) -> None:
        """Leave a tensor, of which nothing else may look at the memory."""
        if tensor.device.type == "cpu" and self._held + tensor.nbytes <= _MOST:
            self._held += tensor.nbytes
            self._free.setdefault((tuple(tensor.shape), tensor.dtype), []).append(tensor)
