"""Random codes for the tests of the integer products, and their exact products in float64.

Weights and activations are made from codes, not from floats, so that every code is equally likely, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

WEIGHTS = [
    "int2/g32/asym",
    "int3/channel/sym",
    "int4/g32/sym",
    "int4/g32/asym",
    "int4/tensor/sym",
    "int5/channel/asym",
    "int8/channel/sym",
    "int8/channel/sym/narrow",
    "int8/channel/asym",
    "int8/tensor/asym",
    "int8/g32/sym",
    "uint4/g32/asym",
    "uint4/channel/sym",
    "uint8/channel/asym",
    "uint8/tensor/sym",
    "uint8/g32/asym",
]
ACTIVATIONS = [
    "uint8/tensor/asym",
    "uint8/tensor/sym",
    "uint8/token/asym",
    "int8/tensor/sym",
    "int8/tensor/asym",
    "int8/token/sym",
    "int8/token/asym",
    "int4/token/sym",
    "uint4/tensor/asym",
    "int16/token/sym",
    "int16/tensor/asym",
]


@dataclass(frozen=True)
class Activations:
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def exact(self) -> Tensor:
        return self._spread(self.scale).double() * self.centred()

    def centred(self) -> Tensor:
        codes = self.codes.double()
        return codes if self.zero_point is None else codes - self._spread(self.zero_point).double()

    def size(self) -> Tensor:
        """``s·(|q| + |z|)``: what rounding errors are relative to."""
        zero = 0.0 if self.zero_point is None else self._spread(self.zero_point).double().abs()
        return self._spread(self.scale).double() * (self.codes.double().abs() + zero)

    def _spread(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape, *[1] * (self.codes.dim() - value.dim())) if value.dim() else value


def integers(low: float, high: float, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(low), int(high) + 1, shape, generator=generator)


def scales(shape: tuple[int, ...], seed: int, one: bool = False) -> Tensor:
    if one:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.exp(torch.randn(shape, generator=generator)) * 0.01


def weight(spec: str, rows: int, columns: int, seed: int = 0, ones: bool = False) -> QTensor:
    """Codes over the whole range; all scales 1 if ``ones``."""
    parsed = QSpec.parse(spec)
    padded = parsed.granularity.padded_shape((rows, columns))
    scale_shape = parsed.granularity.scale_shape((rows, columns))
    codes = integers(parsed.qmin, parsed.qmax, padded, seed).to(parsed.format.code_dtype)
    zero = None if parsed.symmetric else integers(parsed.qmin, parsed.qmax, scale_shape, seed + 2).to(torch.int32)
    return QTensor(codes, scales(scale_shape, seed, ones), zero, parsed, (rows, columns))


def activations(spec: str, shape: tuple[int, ...], seed: int = 0, ones: bool = False) -> Activations:
    """Codes of ``shape``; per token scales for its rows."""
    parsed = QSpec.parse(spec)
    scale_shape = parsed.granularity.scale_shape(shape)
    codes = integers(parsed.qmin, parsed.qmax, shape, seed + 3).to(parsed.format.code_dtype)
    zero = None if parsed.symmetric else integers(parsed.qmin, parsed.qmax, scale_shape, seed + 4).to(torch.int32)
    return Activations(codes, scales(scale_shape, seed + 5, ones), zero)


def exact_weight(t: QTensor) -> Tensor:
    """``s·(q − z)`` in float64 ``[rows, columns]``."""
    return _weight(t, lambda q, z: q - z)


def weight_size(t: QTensor) -> Tensor:
    """``s·(|q| + |z|)`` in float64, of the codes as products use them: unsigned ones are moved below zero first."""
    shift = 0 if t.spec.qmin < 0 else 128
    return _weight(t, lambda q, z: (q - shift).abs() + (z - shift).abs())


def _weight(t: QTensor, combine: object) -> Tensor:
    grain, shape = t.spec.granularity, t.shape
    zero = torch.zeros_like(t.scale, dtype=torch.int32) if t.zero_point is None else t.zero_point
    codes = grain.blocked(t.codes[:, : shape[1]].double())
    values = combine(codes, grain.expand(zero.double(), 2)) * grain.expand(t.scale.double(), 2)  # type: ignore[operator]
    return grain.unblocked(values, shape)[:, : shape[1]]


def pack(t: QTensor) -> PackedMatrix:
    return PackedMatrix.pack(t)


def exact_conv(x: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    """float64 convolution of values with a matrix ``[O, C/groups · kernel]``, borders of 0."""
    padded = torch.nn.functional.pad(x, [side for pair in reversed(geometry.padding) for side in pair])
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[len(geometry.kernel)]
    shaped = kernel.reshape(kernel.shape[0], -1, *geometry.kernel)
    result: Tensor = function(padded, shaped, None, geometry.stride, 0, geometry.dilation, geometry.groups)
    return result
