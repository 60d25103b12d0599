"""QTensor: codes, scale, zero point. A plain value, no tensor subclass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fewbit.numbers.spec import QSpec


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized tensor: ``x̂ = scale · (decode(codes) − zero_point)``.

    Attributes:
        codes: ``spec.format.code_dtype``, of the shape padded to whole groups.
        scale: float32, one for each block (see :mod:`fewbit.numbers.granularity`), of values that the spec's scale type
            holds.
        zero_point: Of the scale's shape, int32 for integer formats, float32 on the grid for others;
            None when symmetric.
        spec: How it was quantized.
        shape: The original shape, without padding.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    spec: QSpec
    shape: tuple[int, ...]

    def dequantize(self) -> Tensor:
        """float32 values of the original shape."""
        from fewbit.numbers import affine  # affine makes QTensors, so the import waits

        return affine.dequantize(self)

    @property
    def padding(self) -> int:
        """Values that fill up ragged groups; stored, but not part of the tensor."""
        return self.codes.numel() - math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Exact bytes when packed: codes with padding, scales in their type, zero points at the format's width."""
        codes = math.ceil(self.codes.numel() * self.spec.bits / 8)
        zero_points = 0
        if self.zero_point is not None:
            zero_points = math.ceil(self.zero_point.numel() * self.spec.bits / 8)
        return codes + self.scale.numel() * self.spec.scale_dtype.itemsize + zero_points

    @property
    def bits_per_weight(self) -> float:
        """Bits for each value of the original tensor, everything included."""
        return self.nbytes * 8 / math.prod(self.shape)
