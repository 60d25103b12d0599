"""A packed weight matrix and its integer form for products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix ``[rows, columns]`` in the plain layout.

    Attributes:
        codes: uint8 bit stream of the padded codes; formats of 16 and 32 float bits keep their own dtype.
        scale: The spec's scale type, of its scale shape.
        zero_point: uint8 bit stream for integer formats, float32 for others, None when symmetric.
        spec: How it was quantized.
        shape: (rows, columns).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    spec: QSpec
    shape: tuple[int, int]

    @classmethod
    def pack(cls, t: QTensor) -> PackedMatrix:
        """From codes of one value an element.

        Raises:
            FewbitError: The tensor is not a matrix.
        """
        if len(t.shape) != 2:
            raise FewbitError(f"a weight is packed as a matrix, not with shape {t.shape}")
        codes = t.codes if t.spec.format.code_dtype.is_floating_point else dispatch.pack(t.codes, t.spec.bits)
        zero_point = t.zero_point
        if zero_point is not None and t.spec.format.is_integer:
            zero_point = dispatch.pack(zero_point.to(t.spec.format.code_dtype), t.spec.bits)
        return cls(codes, t.scale.to(t.spec.scale_dtype), zero_point, t.spec, (t.shape[0], t.shape[1]))

    def unpack(self) -> QTensor:
        """Back to one value an element."""
        fmt, grain = self.spec.format, self.spec.granularity
        codes = self.codes
        padded = grain.padded_shape(self.shape)
        signed = fmt.is_integer and fmt.qmin < 0
        if not fmt.code_dtype.is_floating_point:
            codes = dispatch.unpack(codes, fmt.bits, padded[0] * padded[1], signed)
        zero_point = self.zero_point
        if zero_point is not None and fmt.is_integer:
            flat = dispatch.unpack(zero_point, fmt.bits, self.scale.numel(), signed)
            zero_point = flat.to(torch.int32).reshape(self.scale.shape)
        return QTensor(codes.reshape(padded), self.scale.to(torch.float32), zero_point, self.spec, self.shape)


@dataclass(frozen=True)
class IntegerMatrix:
    """Signed codes ready for integer products.

    Attributes:
        codes: int8 (int16 for 16-bit formats) ``[N, K]``, without padding.
        scale: float32 ``[N, G]``.
        zero_point: int32 ``[N, G]``, or None when all are 0.
        group: Columns of one scale.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    group: int


def integer_matrix(matrix: PackedMatrix) -> IntegerMatrix:
    """The integer form of a packed matrix; unsigned 8-bit codes are shifted by 128, codes and zero points alike.

    Raises:
        FewbitError: The format is not an integer, or the granularity has no scale of its own for each output row.
    """
    spec, (rows, columns) = matrix.spec, matrix.shape
    if not spec.format.is_integer:
        raise FewbitError(f"integer products need integer weights, not {spec.format.name}; use activations of 16 bits")
    t = matrix.unpack()
    codes = t.codes[:, :columns]
    scale, zero_point = rows_of_scales(t.scale, spec, rows), None
    if t.zero_point is not None:
        zero_point = rows_of_scales(t.zero_point, spec, rows)
    if codes.dtype == torch.uint8 and spec.bits < 8:
        codes = codes.to(torch.int8)
    elif codes.dtype in (torch.uint8, torch.uint16):
        shift = 128 if codes.dtype == torch.uint8 else 32768
        narrow = torch.int8 if codes.dtype == torch.uint8 else torch.int16
        codes = (codes.to(torch.int32) - shift).to(narrow)
        zero_point = (torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point) - shift
    if zero_point is not None and not bool(zero_point.any()):
        zero_point = None
    group = spec.granularity.size if isinstance(spec.granularity, PerGroup) else columns
    return IntegerMatrix(codes.contiguous(), scale, zero_point, group)


def rows_of_scales(value: Tensor, spec: QSpec, rows: int) -> Tensor:
    """``[N, G]`` from the spec's own shape."""
    grain = spec.granularity
    if isinstance(grain, PerTensor):
        return value.reshape(1, 1).expand(rows, 1).contiguous()
    if isinstance(grain, PerGroup):
        return value
    if isinstance(grain, PerChannel) and grain.axis != 0:
        raise FewbitError(
            f"{spec}: integer products need weight scales per tensor, per channel on axis 0, or per group"
        )
    return value.reshape(rows, 1)


def dequantize(matrix: PackedMatrix) -> Tensor:
    """float32 ``[rows, columns]``; through the compiled passes for integers of one scale a row or a group."""
    spec, (rows, columns) = matrix.spec, matrix.shape
    if rows == 0:
        return torch.zeros(0, columns, device=matrix.codes.device)
    if not spec.format.is_integer or spec.bits > 8 or not isinstance(spec.granularity, PerGroup | PerChannel):
        return matrix.unpack().dequantize()
    if isinstance(spec.granularity, PerChannel) and spec.granularity.axis != 0:
        return matrix.unpack().dequantize()
    t = matrix.unpack()
    block = spec.granularity.size if isinstance(spec.granularity, PerGroup) else columns
    scale = t.scale.reshape(-1)
    zero = torch.zeros_like(scale, dtype=torch.int32) if t.zero_point is None else t.zero_point.reshape(-1)
    values = dispatch.dequantize_rows(t.codes.reshape(-1, block), scale, zero)
    return values.reshape(rows, -1)[:, :columns]
