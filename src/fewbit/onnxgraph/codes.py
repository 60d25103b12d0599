"""The quantizer of an activation: one scale and one zero point for a whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewbit.calibrate.range import Range
from fewbit.numbers.affine import scale_and_zero_point
from fewbit.numbers.spec import QSpec


@dataclass(frozen=True)
class Codes:
    """``x̂ = scale · (q − zero_point)``, q an integer of the spec's format.

    Attributes:
        scale: A float32 number.
        zero_point: The code of 0.
        spec: An integer format per tensor.
    """

    scale: float
    zero_point: int
    spec: QSpec

    @classmethod
    def of(cls, bounds: Range, spec: QSpec, name: str) -> Codes:
        """Of a range."""
        scale, zero_point = scale_and_zero_point(bounds.lo, bounds.hi, spec, name)
        return cls(float(scale), 0 if zero_point is None else int(zero_point), spec)

    @property
    def low(self) -> float:
        """The smallest value a code stands for."""
        return self.scale * (self.spec.qmin - self.zero_point)

    @property
    def high(self) -> float:
        """The largest."""
        return self.scale * (self.spec.qmax - self.zero_point)

    def implies(self, bounds: tuple[float, float]) -> bool:
        """Whether every value that a code stands for lies within the bounds, to float32's rounding."""
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        return self.low >= bounds[0] - slack and self.high <= bounds[1] + slack

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """``clamp(round(x/s) + z)`` in the format's dtype, for float32 ``x`` of any shape."""
        q = (x / torch.tensor(self.scale, dtype=torch.float32)).round_() + self.zero_point
        return q.clamp_(self.spec.qmin, self.spec.qmax).to(self.spec.format.code_dtype)
