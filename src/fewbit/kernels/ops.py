"""The operators of quantized layers, as ``torch.library`` custom ops, so that ``torch.compile`` and ``torch.export``
see one node each.

Outside of tracing the functions are called directly, which saves the dispatcher's time.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import activations, lowbit, products, weights
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.spec import QSpec

_parse = functools.cache(QSpec.parse)  # 4 us, twice a call


@torch.library.custom_op("fewbit::quantize_static", mutates_args=())
def _quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str) -> Tensor:
    return activations.quantize_static(x, scale, zero_point, _parse(spec)).contiguous()


@_quantize_static.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str) -> Tensor:
    return torch.empty(x.shape, dtype=_parse(spec).format.code_dtype, device=x.device)


@torch.library.custom_op("fewbit::quantize_dynamic", mutates_args=())
def _quantize_dynamic(x: Tensor, spec: str) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero_point = activations.quantize_dynamic(x, _parse(spec))
    zeros = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    return codes.contiguous(), scale.clone(), zeros.clone()


@_quantize_dynamic.register_fake
def _(x: Tensor, spec: str) -> tuple[Tensor, Tensor, Tensor]:
    parsed = _parse(spec)
    shape = _fake_scale_shape(x, parsed)
    codes = torch.empty(x.shape, dtype=parsed.format.code_dtype, device=x.device)
    return codes, x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


def _fake_scale_shape(x: Tensor, spec: QSpec) -> list[int]:
    return list(spec.granularity.scale_shape(tuple(x.shape)))


@torch.library.custom_op("fewbit::linear", mutates_args=())
def _linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    matrix = _matrix(codes, scale, zero_point, spec, rows, columns)
    return products.linear(x, x_scale, x_zero_point, matrix, bias)


@_linear.register_fake
def _(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    return torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device=codes.device)


@torch.library.custom_op("fewbit::conv", mutates_args=())
def _conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
    kernel: list[int],
    stride: list[int],
    before: list[int],
    after: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    matrix = _matrix(codes, scale, zero_point, spec, rows, columns)
    if min([*kernel, *stride, *dilation, groups]) < 1:
        raise FewbitError(
            f"a convolution's kernel, stride, dilation and groups are at least 1, not "
            f"{kernel}, {stride}, {dilation}, {groups}"
        )
    padding = tuple(zip(before, after))
    geometry = Geometry(tuple(kernel), tuple(stride), padding, tuple(dilation), groups)
    return products.conv(x, x_scale, x_zero_point, matrix, bias, geometry).contiguous()


@_conv.register_fake
def _(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
    kernel: list[int],
    stride: list[int],
    before: list[int],
    after: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    walk = zip(x.shape[2:], kernel, stride, before, after, dilation)
    out = [(size + a + b - d * (k - 1) - 1) // s + 1 for size, k, s, a, b, d in walk]
    return torch.empty(x.shape[0], rows, *out, dtype=torch.float32, device=codes.device)


@torch.library.custom_op("fewbit::dequantize", mutates_args=())
def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str, rows: int, columns: int) -> Tensor:
    return weights.dequantize(_matrix(codes, scale, zero_point, spec, rows, columns)).clone()


@_dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str, rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.float32, device=codes.device)


@torch.library.custom_op("fewbit::linear_lowbit", mutates_args=())
def _linear_lowbit(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
    x_spec: str,
    activation: str,
) -> Tensor:
    matrix = _matrix(codes, scale, zero_point, spec, rows, columns)
    if x_spec:
        if not lowbit.takes_dynamic(_parse(x_spec), matrix):
            raise FewbitError(f"fewbit::linear_lowbit has no product of activations {x_spec} and weights {spec}")
        return lowbit.linear_dynamic(x, _parse(x_spec), matrix, bias, activation)
    return lowbit.linear_float(x, matrix, bias, activation)


@_linear_lowbit.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    bias: Tensor | None,
    x_spec: str,
    activation: str,
) -> Tensor:
    return torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device=codes.device)


def linear_float(x: Tensor, matrix: PackedMatrix, bias: Tensor | None, activation: str = "") -> Tensor:
    """:func:`fewbit.kernels.lowbit.linear_float`, traceable."""
    if not torch.compiler.is_compiling():
        return lowbit.linear_float(x, matrix, bias, activation)
    result: Tensor = _linear_lowbit(x, *_flat(matrix), bias, "", activation)
    return result


def linear_dynamic(x: Tensor, spec: QSpec, matrix: PackedMatrix, bias: Tensor | None, activation: str = "") -> Tensor:
    """:func:`fewbit.kernels.lowbit.linear_dynamic`, traceable."""
    if not torch.compiler.is_compiling():
        return lowbit.linear_dynamic(x, spec, matrix, bias, activation)
    result: Tensor = _linear_lowbit(x, *_flat(matrix), bias, spec.text, activation)
    return result


def linear(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, matrix: PackedMatrix, bias: Tensor | None
) -> Tensor:
    """:func:`fewbit.kernels.products.linear`, traceable."""
    if not torch.compiler.is_compiling():
        return products.linear(x, x_scale, x_zero_point, matrix, bias)
    result: Tensor = _linear(x, x_scale, x_zero_point, *_flat(matrix), bias)
    return result


def conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    matrix: PackedMatrix,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """:func:`fewbit.kernels.products.conv`, traceable."""
    if not torch.compiler.is_compiling():
        return products.conv(x, x_scale, x_zero_point, matrix, bias, geometry)
    before, after = [p[0] for p in geometry.padding], [p[1] for p in geometry.padding]
    walk = (list(geometry.kernel), list(geometry.stride), before, after, list(geometry.dilation), geometry.groups)
    result: Tensor = _conv(x, x_scale, x_zero_point, *_flat(matrix), bias, *walk)
    return result


def dequantized(matrix: PackedMatrix) -> Tensor:
    """:func:`fewbit.kernels.weights.dequantize`, traceable."""
    return _dequantize(*_flat(matrix)) if torch.compiler.is_compiling() else weights.dequantize(matrix)


def quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QSpec) -> Tensor:
    """:func:`fewbit.kernels.activations.quantize_static`, traceable."""
    if torch.compiler.is_compiling():
        codes: Tensor = _quantize_static(x, scale, zero_point, spec.text)
        return codes
    return activations.quantize_static(x, scale, zero_point, spec)


def quantize_dynamic(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`fewbit.kernels.activations.quantize_dynamic`, traceable."""
    if not torch.compiler.is_compiling():
        return activations.quantize_dynamic(x, spec)
    codes, scale, zero_point = _quantize_dynamic(x, spec.text)
    return codes, scale, None if spec.symmetric else zero_point


def _matrix(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str, rows: int, columns: int
) -> PackedMatrix:
    """The weights of a call; a layer's own always fit, but an operator may be called with anything."""
    parsed = _parse(spec)
    if rows < 1 or columns < 1:
        raise FewbitError(f"weights of {rows} rows and {columns} columns are none")
    wanted = parsed.granularity.scale_shape((rows, columns))
    if tuple(scale.shape) != tuple(wanted):
        raise FewbitError(f"weights {spec} of {rows} x {columns} have scales {tuple(wanted)}, not {tuple(scale.shape)}")
    return PackedMatrix(codes, scale, zero_point, parsed, (rows, columns))


def _flat(matrix: PackedMatrix) -> tuple[Tensor, Tensor, Tensor | None, str, int, int]:
    return matrix.codes, matrix.scale, matrix.zero_point, matrix.spec.text, *matrix.shape
