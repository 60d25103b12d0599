"""Linear layers with integer weights of 8 bits and fewer on the compiled kernels of ``csrc/lowbit*``.

The packed layout (``csrc/lowbit_layout.h``) is made once, when a layer first runs, and kept as long as its weight;
checkpoints hold the plain one. Activations stay float, or become int8 on the way, with one scale for each row or for
each row and group. A result is within ``1e-5 · Σ |x| |w|`` of the exact one, the same bits at any number of threads;
how many rows are multiplied together may change its last bits, as may the instruction set.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import activations, dispatch, reference, threads
from fewbit.kernels.bound import BoundLinear
from fewbit.kernels.constant import constant_in_graphs
from fewbit.kernels.prepared import prepared
from fewbit.kernels.weights import PackedMatrix, dequantize, rows_of_scales
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor, PerToken
from fewbit.numbers.spec import QSpec

ACTIVATIONS = ("", "relu", "silu", "gelu", "gelu_tanh")
MAX_GROUP = 32768  # 128 · 255 · 32768 < 2^31: no int32 sum overflows; longer groups are cut
BLOCK = 32  # groups are multiples of it
_LAYOUT_BITS = {1: 2, 2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_OWN = (Tensor, torch.nn.Parameter, type(None))
# On sets of four lanes more rows are faster in torch's product, with the weight dequantized.
_NARROW, _FEW_ROWS = ("neon", "portable"), 48


def has_layout(matrix: PackedMatrix) -> bool:
    """Whether the packed layout can hold this matrix: integers of at most 8 bits, groups of a multiple of 32."""
    return 0 not in matrix.shape and _has_layout(matrix.spec.text)


@constant_in_graphs
def _has_layout(text: str) -> bool:
    return _has_layout_cached(text)


@functools.cache
def _has_layout_cached(text: str) -> bool:
    spec = QSpec.parse(text)
    grain = spec.granularity
    if not spec.format.is_integer or spec.bits > 8:
        return False
    return grain in (PerTensor(), PerChannel(0)) or (isinstance(grain, PerGroup) and grain.size % BLOCK == 0)


def takes_dynamic(spec: QSpec, matrix: PackedMatrix) -> bool:
    """Whether :func:`linear_dynamic` computes this layer: symmetric signed activations of at most 8 bits, a scale for
    each token or group."""
    return has_layout(matrix) and _takes_rows(spec.text)


@constant_in_graphs
def _takes_rows(text: str) -> bool:
    return _takes_rows_cached(text)


@functools.cache
def _takes_rows_cached(text: str) -> bool:
    spec = QSpec.parse(text)
    if not isinstance(spec.granularity, PerToken | PerGroup):
        return False
    return spec.symmetric and spec.format.is_integer and spec.format.qmin < 0 and spec.bits <= 8 and spec.qmax > 0


def groups_problem(x_spec: QSpec, spec: QSpec) -> str | None:
    """Why activations with scales per group do not go with these weights, or None."""
    if not isinstance(x_spec.granularity, PerGroup):
        return None
    own, size = spec.granularity, x_spec.granularity.size
    fits = own.size % BLOCK == 0 and own.size % size == 0 if isinstance(own, PerGroup) else True
    if spec.bits > 8 or not fits:
        return (
            f"activations in groups of {size} need weights of at most 8 bits in groups that {size} divides, not {spec}"
        )
    return None


def _most_values(matrix: PackedMatrix) -> int | None:
    """From how many values of activations on torch's product in float is faster, or None for never."""
    return _FEW_ROWS * matrix.shape[1] if dispatch.backend() in _NARROW else None


def linear_float(x: Tensor, matrix: PackedMatrix, bias: Tensor | None, activation: str = "") -> Tensor:
    """``act(x Wᵀ + bias)`` with the product in float32.

    Args:
        x: ``[…, K]``, floating.
        matrix: Weights that :func:`has_layout`.
        bias: ``[N]`` or None.
        activation: One of ``ACTIVATIONS``.

    Returns:
        ``[…, N]`` of the dtype of ``x``.
    """
    few = _most_values(matrix)
    if (few is not None and x.numel() >= few) or not _native_serves(x, matrix):
        # 16 bits would round the weights, and overflow where float32 does not.
        wide = torch.float32 if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        weight, shift = dequantize(matrix).to(wide), None if bias is None else bias.to(wide)
        return _activated(F.linear(x.to(wide), weight, shift), activation).to(x.dtype)
    rows, out = _rows_and_output(x, matrix)
    _layout(matrix, 0).linear_float(rows, _single(bias), out, activation)
    return _like_input(out, x)


def linear_dynamic(x: Tensor, spec: QSpec, matrix: PackedMatrix, bias: Tensor | None, activation: str = "") -> Tensor:
    """``act(x̂ Wᵀ + bias)`` with x quantized to ``spec`` on the way and the products in int32.

    Args:
        x: ``[…, K]``, floating.
        spec: Symmetric integers, per token or per group of a multiple of 32 that divides the weight's groups.
        matrix: Weights that :func:`has_layout`.
        bias: ``[N]`` or None.
        activation: One of ``ACTIVATIONS``.

    Returns:
        ``[…, N]`` of the dtype of ``x``.

    Raises:
        FewbitError: The groups do not fit each other.
    """
    group = spec.granularity.size if isinstance(spec.granularity, PerGroup) else 0
    if not _native_serves(x, matrix):
        return _activated(_slow_dynamic(x, spec, matrix, bias, group), activation).to(x.dtype)
    rows, out = _rows_and_output(x, matrix)
    _layout(matrix, group).linear_dynamic(rows, int(spec.qmax), not group, _single(bias), out, activation)
    return _like_input(out, x)


def linear_codes(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, matrix: PackedMatrix, bias: Tensor | None
) -> Tensor:
    """A linear layer on int8 or uint8 codes ``[M, K]``: scale and zero point ``[1]`` or ``[M]``; float32 ``[M, N]``."""
    out = torch.empty(x.shape[0], matrix.shape[0])
    if x_zero_point is None and x.dtype == torch.uint8:
        x_zero_point = torch.zeros(x_scale.shape, dtype=torch.int32)
    zero = None if x_zero_point is None else x_zero_point.contiguous()
    _layout(matrix, 0, zero is not None).linear_codes(x.contiguous(), x_scale.contiguous(), zero, _single(bias), out)
    return out


def bind(matrix: PackedMatrix, bias: Tensor | None, quantizer: Any, spec: QSpec | None) -> BoundLinear | None:
    """The short way of a layer (:mod:`fewbit.kernels.bound`), or None where there is none here.

    Args:
        matrix: Weights that :func:`has_layout`, the layer's own tensors.
        bias: The layer's own.
        quantizer: What quantizes the activations, compared by identity.
        spec: Of the activations, which :func:`takes_dynamic`, or None for products in float.
    """
    plain = bias is None or (bias.dtype == torch.float32 and bias.device.type == "cpu" and bias.is_contiguous())
    tensors = (matrix.codes, matrix.scale, matrix.zero_point)
    native = dispatch._native
    if native is None or not plain or not _compiled(matrix.codes, matrix) or any(type(t) not in _OWN for t in tensors):
        return None
    if spec is None:
        few = _most_values(matrix)
        return BoundLinear(native, _layout(matrix, 0), matrix.shape, tensors, bias, quantizer, few=few)
    group = spec.granularity.size if isinstance(spec.granularity, PerGroup) else 0
    layout = _layout(matrix, group)
    return BoundLinear(native, layout, matrix.shape, tensors, bias, quantizer, int(spec.qmax), not group)


def serves_codes(x: Tensor, matrix: PackedMatrix) -> bool:
    """Whether :func:`linear_codes` can be called here."""
    return x.dtype in (torch.int8, torch.uint8) and _compiled(x, matrix)


def layout_bytes(matrix: PackedMatrix) -> int:
    """Bytes of the packed layout of a matrix, which is made if it was not."""
    size: int = _layout(matrix, 0).nbytes
    return size


@dataclass(frozen=True)
class Grouped:
    """Codes ``[N, K]`` with scales and zero points ``[N, G]`` for groups that the kernels take."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    group: int


def regrouped(matrix: PackedMatrix, group: int) -> Grouped:
    """The weight in groups of ``group`` columns, 0 for its own; a scale that spans several is repeated.

    Raises:
        FewbitError: ``group`` does not divide the weight's groups.
    """
    t, (rows, columns) = matrix.unpack(), matrix.shape
    grain = matrix.spec.granularity
    own = grain.size if isinstance(grain, PerGroup) and grain.size < columns else -(-columns // BLOCK) * BLOCK
    if own < columns and group and own % group:
        raise FewbitError(f"activations in groups of {group} do not fit weights in groups of {own}; take a divisor")
    group = _at_most(group or own, own)
    index = torch.arange(0, columns, group) // own  # which of the weight's groups holds each of the new ones
    scale = rows_of_scales(t.scale, matrix.spec, rows)[:, index].to(torch.float32).contiguous()
    zero = None
    if t.zero_point is not None:
        zero = rows_of_scales(t.zero_point, matrix.spec, rows)[:, index].to(torch.int32).contiguous()
    return Grouped(t.codes[:, :columns].contiguous(), scale, zero, group)


def _at_most(group: int, own: int) -> int:
    """A group no longer than the weight's, cut where a sum could overflow."""
    group = min(group, own)
    if group <= MAX_GROUP:
        return group
    return next(size for size in range(MAX_GROUP, 0, -BLOCK) if group % size == 0)


def _slow_dynamic(x: Tensor, spec: QSpec, matrix: PackedMatrix, bias: Tensor | None, group: int) -> Tensor:
    codes, scale, _ = activations.quantize_dynamic(x.reshape(-1, x.shape[-1]), spec)
    weight = regrouped(matrix, group)
    scale = scale if group else scale.reshape(-1, 1).expand(-1, weight.scale.shape[1])
    result = reference.linear_groups(codes, scale, weight.codes, weight.scale, weight.zero_point, weight.group)
    if bias is not None:
        result = result + bias
    return result.to(torch.float32).reshape(*x.shape[:-1], matrix.shape[0])


def _activated(y: Tensor, activation: str) -> Tensor:
    if activation == "gelu_tanh":
        return F.gelu(y, approximate="tanh")
    functions = {"": lambda v: v, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
    result: Tensor = functions[activation](y)
    return result


def _native_serves(x: Tensor, matrix: PackedMatrix) -> bool:
    return x.dtype in _FLOATS and _compiled(x, matrix)


def _compiled(x: Tensor, matrix: PackedMatrix) -> bool:
    native = dispatch._native is not None and dispatch.forced_isa() != "reference"
    return native and has_layout(matrix) and x.device.type == "cpu" and matrix.codes.device.type == "cpu"


def _rows_and_output(x: Tensor, matrix: PackedMatrix) -> tuple[Tensor, Tensor]:
    rows, (outputs, columns) = x.detach().resolve_neg(), matrix.shape
    if rows._is_zerotensor():  # has no memory
        rows = torch.zeros(rows.shape, dtype=rows.dtype)
    if x.shape[-1] != columns:
        raise FewbitError(f"a linear layer of {columns} inputs got {x.shape[-1]}")
    if x.dim() != 2:
        rows = rows.reshape(-1, columns)
    if rows.dtype == torch.float16:
        rows = rows.to(torch.float32)
    return rows.contiguous(), torch.empty(rows.shape[0], outputs, dtype=rows.dtype)


def _like_input(out: Tensor, x: Tensor) -> Tensor:
    if x.dim() != 2:
        out = out.reshape(*x.shape[:-1], out.shape[-1])
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _layout(matrix: PackedMatrix, group: int, sums: bool = False) -> Any:
    """The packed layout, cut into groups of ``group`` (0: its own); with sums where activations have zero points."""
    native = dispatch._native
    assert native is not None
    threads.follow_torch(native)
    key = (matrix.spec.text, matrix.shape, "lowbit", group, sums)
    return prepared(matrix.codes, (matrix.scale, matrix.zero_point), key, lambda: _pack(native, matrix, group, sums))


def _pack(native: Any, matrix: PackedMatrix, group: int, sums: bool) -> Any:
    g = regrouped(matrix, group)
    return native.LowbitMatrix(g.codes, g.scale, g.zero_point, g.group, _LAYOUT_BITS[matrix.spec.bits], sums)


def _single(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(torch.float32).contiguous()
