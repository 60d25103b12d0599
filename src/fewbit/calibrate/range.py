"""Range: what a calibrator answers, the interval of each block that the codes will cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


@dataclass(frozen=True)
class Range:
    """The interval ``[lo, hi]`` of each block; values outside it are clipped.

    Attributes:
        lo: float32 lower ends, of the shape of the scales.
        hi: float32 upper ends, same shape.

    Raises:
        FewbitError: The shapes differ, or a bound is NaN, infinite or out of order.
    """

    lo: Tensor
    hi: Tensor

    def __post_init__(self) -> None:
        if self.lo.shape != self.hi.shape:
            raise FewbitError(f"a range has {tuple(self.lo.shape)} lower and {tuple(self.hi.shape)} upper ends")
        if not bool((torch.isfinite(self.lo) & torch.isfinite(self.hi) & (self.lo <= self.hi)).all()):
            raise FewbitError("a range has a bound that is NaN, infinite or out of order")

    @classmethod
    def of(cls, lo: Tensor, hi: Tensor, spec: QSpec, shape: tuple[int, ...] | None = None) -> Range:
        """The interval as ``spec`` can use it.

        Symmetric: ``[-c, c]``, ``c = max(|lo|, |hi|)``. Asymmetric: widened to hold 0, so that 0 is exact.

        Args:
            lo: Lower ends, float32 or float64.
            hi: Upper ends, same shape.
            spec: Decides between the two.
            shape: Shape of the result, by default that of ``lo``.
        """
        lo, hi = lo.to(torch.float32), hi.to(torch.float32)
        if spec.symmetric:
            hi = torch.maximum(lo.abs(), hi.abs())
            lo = -hi
        else:
            lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        shape = tuple(lo.shape) if shape is None else shape
        return cls(lo.reshape(shape), hi.reshape(shape))
