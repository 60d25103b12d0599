"""Real multipliers as integers: ``M = 2^−n · M0`` with M0 in [0.5, 1) held in 31 bits (arXiv 1712.05877, section 2.2).

Two ways to round are in use. ``double``: gemmlowp's and TensorFlow Lite's reference kernels' saturating rounding
doubling high multiply (half away from 0), then a rounding right shift (half away from 0). ``single``: one addition of
half and one shift (half up), as in TensorFlow Lite built for single rounding. They differ by at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fewbit.errors import FewbitError

Rounding = Literal["single", "double"]
_FRACTION_BITS = 31
_INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True)
class Multiplier:
    """``M ≈ mantissa · 2^(exponent − 31)``.

    Attributes:
        mantissa: int64, 2^30 ≤ mantissa < 2^31, or 0.
        exponent: int64 of the same shape; negative for a shift to the right.
    """

    mantissa: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, real: Tensor | float) -> Multiplier:
        """The nearest multiplier of positive real numbers, any shape.

        Raises:
            FewbitError: A number is not positive and finite, or is 2^30 or more.
        """
        real = torch.as_tensor(real, dtype=torch.float64)
        if not bool(((real > 0) & torch.isfinite(real)).all()) or float(real.max()) >= 2.0**30:
            raise FewbitError("a multiplier is a positive number below 2^30")
        fraction, exponent = torch.frexp(real)
        mantissa = torch.round(fraction * 2**_FRACTION_BITS).to(torch.int64)
        exponent = exponent.to(torch.int64)
        carried = mantissa == 2**_FRACTION_BITS
        mantissa = torch.where(carried, mantissa // 2, mantissa)
        exponent = exponent + carried.to(torch.int64)
        gone = exponent < -_FRACTION_BITS  # smaller than half of the least product
        return cls(torch.where(gone, 0, mantissa), torch.where(gone, 0, exponent))

    def reshape(self, *shape: int) -> Multiplier:
        """The same multipliers in another shape."""
        return Multiplier(self.mantissa.reshape(shape), self.exponent.reshape(shape))


def rescale(x: Tensor, multiplier: Multiplier, rounding: Rounding = "double") -> Tensor:
    """``round(M x)`` in integer arithmetic.

    Args:
        x: int64 values that fit 32 bits, any shape.
        multiplier: Of a shape that broadcasts to ``x``.
        rounding: ``double`` or ``single``, see the module.

    Returns:
        int64 of the shape of ``x``, saturated to 32 bits.
    """
    if rounding not in get_args(Rounding):
        raise FewbitError(f"rounding is single or double, not {rounding!r}")
    if rounding == "single":
        shift = _FRACTION_BITS - multiplier.exponent
        half = torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
        moved = torch.bitwise_right_shift(x * multiplier.mantissa + half, shift)
        return moved.clamp_(_INT32.min, _INT32.max)
    left, right = multiplier.exponent.clamp(min=0), (-multiplier.exponent).clamp(min=0)
    widened = torch.bitwise_left_shift(x, left).clamp_(_INT32.min, _INT32.max)
    return _rounding_shift(_doubling_high_multiply(widened, multiplier.mantissa), right)


def _doubling_high_multiply(a: Tensor, b: Tensor) -> Tensor:
    """``round(2ab / 2^32)``, half away from 0; the mantissa is never negative, so the one overflow cannot happen."""
    product = a * b
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return torch.div(product + nudge, 1 << _FRACTION_BITS, rounding_mode="trunc")


def _rounding_shift(x: Tensor, shift: Tensor) -> Tensor:
    """``round(x / 2^shift)``, half away from 0."""
    mask = torch.bitwise_left_shift(torch.ones_like(shift), shift) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0).to(torch.int64)
    return torch.bitwise_right_shift(x, shift) + (remainder > threshold).to(torch.int64)
