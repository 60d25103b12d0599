"""Integer products with their scales: codes and scales in, float32 out, on the backend that is right for the machine.

``Y = s_x s_w [X_q W_q − z_x Σ W_q − z_w Σ X_q + K z_x z_w]`` (arXiv 1712.05877, section 2.3). The sums over weights are
made once. Backends give the same integers; they differ in the last bits
of the float scaling: each is within ``2^-22 · Σ (|X_q| + |z_x|)(|W_q| + |z_w|) s_x s_w`` of the exact value, but for
the low-bit kernels, which add the groups of a row in float32: ``2^-24`` of the same sum more for each group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fewbit.kernels import lowbit, onednn, portable, reference
from fewbit.kernels.dispatch import forced_isa
from fewbit.kernels.prepared import prepared
from fewbit.kernels.weights import IntegerMatrix, PackedMatrix, integer_matrix

T = TypeVar("T")

# More partial sums of a row than these are added in float64: 128 · 2^-24 is below 1e-5.
_MOST_GROUPS = 128
_FEW_ROWS = 64  # up to here the low-bit kernels are faster than oneDNN for codes of 8 bits


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks: one entry for each spatial axis; ``padding`` is (before, after)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def linear(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, matrix: PackedMatrix, bias: Tensor | None
) -> Tensor:
    """A linear layer on codes.

    Args:
        x: Codes ``[…, K]``: int8, uint8, int16 or uint16.
        x_scale: float32, ``()`` or ``x.shape[:-1]``.
        x_zero_point: int32 of the same shape, or None for 0.
        matrix: Packed weights ``[N, K]`` in an integer format.
        bias: float32 ``[N]`` or None.

    Returns:
        float32 ``[…, N]``.
    """
    rows = x.reshape(-1, x.shape[-1])
    scale = x_scale.reshape(-1, 1) if x_scale.dim() else x_scale
    zero = x_zero_point.reshape(-1, 1) if x_zero_point is not None and x_zero_point.dim() else x_zero_point
    if rows.shape[0] == 0:
        result = torch.zeros(0, matrix.shape[0], device=x.device)
    elif _lowbit(rows, matrix):
        zeros = None if zero is None else zero.reshape(-1).expand(scale.numel())
        result = lowbit.linear_codes(rows, scale.reshape(-1), zeros, matrix, bias)
        return result.reshape(*x.shape[:-1], matrix.shape[0])
    elif _fast(x, matrix):
        result = _onednn_linear(rows, scale, zero, matrix, bias)
        return result.reshape(*x.shape[:-1], matrix.shape[0])
    else:
        result = _plain_linear(rows, zero, matrix).mul_(scale)
    if bias is not None:
        result = result.add_(bias)
    return result.reshape(*x.shape[:-1], matrix.shape[0])


def conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    matrix: PackedMatrix,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """A convolution on codes.

    Args:
        x: Codes ``[N, C, *spatial]``.
        x_scale: float32, ``()`` or ``[N]`` (one for each sample).
        x_zero_point: int32 ``()`` or None for 0.
        matrix: Packed weights ``[O, C/groups · kernel]``.
        bias: float32 ``[O]`` or None.
        geometry: Kernel, stride, padding, dilation, groups.

    Returns:
        float32 ``[N, O, *out]``.
    """
    per_sample = x_scale.reshape(-1, *[1] * (x.dim() - 1)) if x_scale.dim() else x_scale
    if x.shape[0] == 0:
        return torch.zeros(0, matrix.shape[0], *out_shape(x.shape[2:], geometry), device=x.device)
    if matrix.scale.dim() == 2 and matrix.scale.shape[1] > 1:
        return _conv_by_patches(x, per_sample, x_zero_point, matrix, bias, geometry)
    if _fast(x, matrix) and math.prod(geometry.kernel) * x.shape[1] // geometry.groups <= onednn.MAX_DEPTH:
        return _onednn_conv(x, per_sample, x_zero_point, matrix, bias, geometry)
    weights = _integers(matrix)
    product = reference.wide_conv if forced_isa() == "reference" else portable.int_conv
    accumulator = product(
        x,
        weights.codes.reshape(matrix.shape[0], -1, *geometry.kernel),
        0 if x_zero_point is None else int(x_zero_point),
        0 if weights.zero_point is None else weights.zero_point[:, 0],
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    channel = [-1, *[1] * (x.dim() - 2)]
    result = accumulator.to(torch.float32) * weights.scale.reshape(channel) * per_sample
    return result if bias is None else result + bias.reshape(channel)


def out_shape(spatial: Sequence[int], geometry: Geometry) -> list[int]:
    """The spatial shape of a convolution's output."""
    walk = zip(spatial, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    return [(size + before + after - d * (k - 1) - 1) // s + 1 for size, k, s, (before, after), d in walk]


def _fast(x: Tensor, matrix: PackedMatrix) -> bool:
    narrow = x.dtype in (torch.int8, torch.uint8) and matrix.spec.bits <= 8
    return narrow and x.device.type == "cpu" and forced_isa() not in ("reference", "portable") and onednn.available()


def _lowbit(rows: Tensor, matrix: PackedMatrix) -> bool:
    """Whether the low-bit kernels are the right ones: always for several scales a row or where oneDNN is not exact, and
    for few rows, which they read the weights for faster."""
    if forced_isa() in ("reference", "portable") or not lowbit.serves_codes(rows, matrix):
        return False
    groups = matrix.scale.shape[1] if matrix.scale.dim() == 2 else 1
    if groups > _MOST_GROUPS:
        return False
    return groups > 1 or matrix.spec.bits < 8 or rows.shape[0] <= _FEW_ROWS or not _fast(rows, matrix)


def _prepared(matrix: PackedMatrix, key: Hashable, build: Callable[[], T]) -> T:
    return prepared(matrix.codes, (matrix.scale, matrix.zero_point), (matrix.spec.text, key), build)


def _integers(matrix: PackedMatrix) -> IntegerMatrix:
    return _prepared(matrix, "integers", lambda: integer_matrix(matrix))


def _slices(columns: int, group: int, most: int = onednn.MAX_DEPTH) -> list[tuple[int, int, int]]:
    """(start, stop, group index): one scale each, and no sum longer than int32 can hold."""
    pieces = []
    for index, start in enumerate(range(0, columns, group)):
        stop = min(start + group, columns)
        pieces += [(a, min(a + most, stop), index) for a in range(start, stop, most)]
    return pieces


def _plain_linear(x: Tensor, x_zero_point: Tensor | None, matrix: PackedMatrix) -> Tensor:
    """``s_w (X − z_x)(W − z_w)ᵀ`` on the reference or the portable product."""
    weights = _integers(matrix)
    slow = forced_isa() == "reference"
    x_zero: Tensor | int = 0 if x_zero_point is None else x_zero_point
    total = torch.zeros(x.shape[0], matrix.shape[0], dtype=torch.float64, device=x.device)
    for start, stop, index in _slices(matrix.shape[1], weights.group):
        part, codes = x[:, start:stop], weights.codes[:, start:stop]
        zero: Tensor | int = 0 if weights.zero_point is None else weights.zero_point[:, index : index + 1]
        if slow:
            columns = zero.t() if isinstance(zero, Tensor) else zero
            product = reference.wide_matmul(part, codes.t(), x_zero, columns)
        else:
            product = portable.int_matmul(part, codes, x_zero, zero)
        total += product.to(torch.float64) * weights.scale[:, index]
    return total.to(torch.float32)


@dataclass(frozen=True)
class _Slice:
    """One prepacked piece of a weight matrix with its precomputed terms, all float32 ``[N]``."""

    start: int
    stop: int
    packed: Tensor
    scale: Tensor
    scaled_sum: Tensor  # s_w Σ (W − z_w), which a row's own zero point multiplies
    scaled_zero: Tensor | None  # s_w z_w


def _prepare_linear(matrix: PackedMatrix) -> list[_Slice]:
    weights = integer_matrix(matrix)
    slices = []
    for start, stop, index in _slices(matrix.shape[1], weights.group):
        codes = weights.codes[:, start:stop].contiguous()
        scale = weights.scale[:, index].contiguous()
        zero = None if weights.zero_point is None else weights.zero_point[:, index]
        total = codes.sum(dim=1, dtype=torch.int64) - (0 if zero is None else zero.to(torch.int64) * (stop - start))
        scaled_zero = None if zero is None else scale * zero
        slices.append(_Slice(start, stop, onednn.pack_linear(codes), scale, scale * total, scaled_zero))
    return slices


def _onednn_linear(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, matrix: PackedMatrix, bias: Tensor | None
) -> Tensor:
    slices = _prepared(matrix, "linear", lambda: _prepare_linear(matrix))
    x, shift = _as_uint8(x)
    row_zero = x_zero_point if x_zero_point is not None and x_zero_point.dim() else None
    zero = shift + (0 if x_zero_point is None or row_zero is not None else int(x_zero_point))
    if len(slices) == 1 and x_scale.dim() == 0 and slices[0].scaled_zero is None:
        piece = slices[0]
        return onednn.linear(x, float(x_scale), zero, piece.packed, piece.scale, bias)
    total: Tensor | None = None
    for piece in slices:
        part = x if len(slices) == 1 else x[:, piece.start : piece.stop].contiguous()
        product = onednn.linear(part, 1.0, zero, piece.packed, piece.scale)
        if piece.scaled_zero is not None:
            sums = part.sum(dim=1, dtype=torch.int64) - zero * (piece.stop - piece.start)
            product.addr_(sums.to(torch.float32), piece.scaled_zero, alpha=-1)
        if row_zero is not None:
            product.addr_(row_zero.reshape(-1).to(torch.float32), piece.scaled_sum, alpha=-1)
        # Rounding would add up over many groups, so their sum is kept in float64.
        product = product if len(slices) == 1 else product.to(torch.float64)
        total = product if total is None else total.add_(product)
    assert total is not None
    total = total.to(torch.float32).mul_(x_scale)
    return total if bias is None else total.add_(bias)


def _onednn_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    matrix: PackedMatrix,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    x, shift = _as_uint8(x)
    zero = shift + (0 if x_zero_point is None else int(x_zero_point))
    x, geometry = _tamed(x, geometry, zero, matrix.shape[0])
    weights = _integers(matrix)
    scale = weights.scale[:, 0].contiguous()
    scalar = x_scale.dim() == 0 and weights.zero_point is None
    result = _conv_call(x, x_scale, zero, matrix, weights.codes, scale, bias if scalar else None, geometry, scalar)
    if scalar:
        return result
    channel = [-1, *[1] * (x.dim() - 2)]
    if weights.zero_point is not None:
        result -= _patch_sums(x, zero, geometry, matrix.shape[0]) * (scale * weights.zero_point[:, 0]).reshape(channel)
    result = result * x_scale
    return result if bias is None else result + bias.reshape(channel)


def _tamed(x: Tensor, geometry: Geometry, zero: int, out_channels: int) -> tuple[Tensor, Geometry]:
    """An equal convolution that oneDNN computes rightly.

    oneDNN (as torch 2.13 ships it) gives wrong integers, or ends the process, for some paddings with a zero point:
    kernels that lie within the border, axes of length 1, volumes. So it pads by itself in the plain case alone;
    otherwise the codes are padded before. It is wrong, too, for depthwise convolutions with several outputs a channel,
    which become plain depthwise ones of repeated channels.
    """
    axes = len(geometry.kernel)
    if x.shape[1] == geometry.groups != out_channels:
        each = out_channels // geometry.groups
        x = x.repeat_interleave(each, dim=1)
        geometry = replace(geometry, groups=out_channels)
    depthwise_or_whole = geometry.groups in (1, x.shape[1])
    fits = all(p[0] == p[1] < k <= n for p, k, n in zip(geometry.padding, geometry.kernel, x.shape[2:]))
    wide = min(out_shape(x.shape[2:], geometry)) > 1
    if axes == 2 and depthwise_or_whole and fits and wide and geometry.dilation == (1, 1):
        return x, geometry
    if any(before or after for before, after in geometry.padding):
        x = reference._pad(x, geometry.padding, zero)
        geometry = replace(geometry, padding=((0, 0),) * axes)
    return _without_idle_strides(x, geometry)


def _without_idle_strides(x: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """An unpadded convolution whose axes of one output position have stride 1; oneDNN is wrong for some others."""
    stride = list(geometry.stride)
    for axis, size in enumerate(out_shape(x.shape[2:], geometry)):
        if size == 1 and stride[axis] > 1:
            x = x.narrow(2 + axis, 0, geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1)
            stride[axis] = 1
    return x, replace(geometry, stride=tuple(stride))


def _conv_call(
    x: Tensor,
    x_scale: Tensor,
    zero: int,
    matrix: PackedMatrix,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    scalar: bool,
) -> Tensor:
    padding = tuple(before for before, _ in geometry.padding)
    walk = (geometry.stride, padding, geometry.dilation, geometry.groups)
    packed = _prepared(
        matrix,
        ("conv", zero, geometry),
        lambda: onednn.pack_conv(codes.reshape(matrix.shape[0], -1, *geometry.kernel), scale, zero, *walk),
    )
    return onednn.conv(x, float(x_scale) if scalar else 1.0, zero, packed, scale, bias, *walk)


def _patch_sums(x: Tensor, zero: int, geometry: Geometry, out_channels: int) -> Tensor:
    """``Σ (X − z_x)`` under each kernel position and channel group, ``[N, out_channels, *out]``: exact in float64."""
    groups = geometry.groups
    by_group = (x.to(torch.float64) - zero).reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(dim=2)
    ones = torch.ones(groups, 1, *geometry.kernel, dtype=torch.float64)
    sums = portable.int_conv(
        by_group,
        ones,
        0,
        0,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=groups,
    )
    return sums.to(torch.float32).repeat_interleave(out_channels // groups, dim=1)


def _conv_by_patches(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    matrix: PackedMatrix,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Weights with several scales a row: each patch becomes a row of a linear layer."""
    groups, batch = geometry.groups, x.shape[0]
    padded = reference._pad(x, geometry.padding, 0 if x_zero_point is None else int(x_zero_point))
    patches = reference._patches(padded, torch.Size(geometry.kernel), geometry.stride, geometry.dilation)
    out = patches.shape[2 : 2 + len(geometry.kernel)]
    rows = patches.reshape(batch, groups, x.shape[1] // groups, math.prod(out), -1).transpose(2, 3).flatten(3)
    weights, each = matrix.unpack(), matrix.shape[0] // groups
    results = []
    for g in range(groups):
        part = slice(g * each, (g + 1) * each)
        zero = None if weights.zero_point is None else weights.zero_point[part]
        one = type(weights)(weights.codes[part], weights.scale[part], zero, weights.spec, (each, matrix.shape[1]))
        packed = (
            matrix
            if groups == 1
            else _prepared(
                matrix,
                ("patches", g),
                lambda one=one: PackedMatrix.pack(one),  # type: ignore[misc]
            )
        )
        results.append(linear(rows[:, g], torch.ones(()), x_zero_point, packed, None))
    result = torch.cat(results, dim=-1).transpose(1, 2).reshape(batch, matrix.shape[0], *out) * x_scale
    return result if bias is None else result + bias.reshape(-1, *[1] * len(geometry.kernel))


def _as_uint8(x: Tensor) -> tuple[Tensor, int]:
    """Signed codes moved up by 128 (the same bits with the top one flipped), and how far the zero point moves."""
    return (x, 0) if x.dtype == torch.uint8 else (x.view(torch.uint8) ^ 128, 128)
