"""The operators that stand for quantization while a network is on its way to ONNX, and what they become there.

``fewbit::qdq`` becomes QuantizeLinear and DequantizeLinear; ``fewbit::qdq_conv`` and ``fewbit::qdq_linear`` become Conv
and Gemm (MatMul for inputs of more axes) whose weight is int8 behind a DequantizeLinear per channel, and whose bias is
int32 in units of ``s_x s_w``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.errors import require
from fewbit.integer.ir import Affine
from fewbit.integer.simulate import float_conv
from fewbit.kernels.products import Geometry

OPSET = 18


@torch.library.custom_op("fewbit::qdq", mutates_args=())
def qdq(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """``s·(q − z)`` of the codes of ``x``."""
    affine = Affine(scale, zero_point, qmin, qmax)
    return affine.dequantize(affine.quantize(x)).contiguous()


@qdq.register_fake
def _(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float32)


@torch.library.custom_op("fewbit::qdq_conv", mutates_args=())
def qdq_conv(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, step: Tensor,
    stride: list[int], before: list[int], after: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """A convolution with the weight and bias that the codes stand for."""
    weight = codes.to(torch.float32) * scale.reshape(-1, *[1] * (codes.dim() - 1))
    walk = Geometry(tuple(codes.shape[2:]), tuple(stride), tuple(zip(before, after)), tuple(dilation), groups)
    return float_conv(x, weight, bias.to(torch.float32) * step, walk)


@qdq_conv.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, step: Tensor,
    stride: list[int], before: list[int], after: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    walk = zip(x.shape[2:], codes.shape[2:], stride, before, after, dilation)
    out = [(size + a + b - d * (k - 1) - 1) // s + 1 for size, k, s, a, b, d in walk]
    return torch.empty(x.shape[0], codes.shape[0], *out, dtype=torch.float32)


@torch.library.custom_op("fewbit::qdq_linear", mutates_args=())
def qdq_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, step: Tensor) -> Tensor:
    """A linear layer with the weight and bias that the codes stand for."""
    return F.linear(x, codes.to(torch.float32) * scale.reshape(-1, 1), bias.to(torch.float32) * step)


@qdq_linear.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, step: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], codes.shape[0], dtype=torch.float32)


@torch.library.custom_op("fewbit::global_average", mutates_args=())
def global_average(x: Tensor) -> Tensor:
    """The mean of each picture's channels, ``[N, C, 1, 1]``."""
    return x.mean(dim=(2, 3), keepdim=True)


@global_average.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty(x.shape[0], x.shape[1], 1, 1, dtype=torch.float32)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What each operator becomes, for ``torch.onnx.export``.

    Raises:
        MissingExtraError: onnxscript is not installed.
    """
    op = require("onnxscript", "onnx").values.Opset("", OPSET)

    def onnx_qdq(x: Any, scale: float, zero_point: int, qmin: int, qmax: int) -> Any:
        affine = Affine(scale, zero_point, qmin, qmax)

        def code(value: int) -> Any:
            return op.Constant(value=_tensor(torch.tensor(value, dtype=affine.dtype)))

        s, z = op.Constant(value=_tensor(torch.tensor(scale))), code(zero_point)
        codes = op.QuantizeLinear(x, s, z)
        if not affine.fills_its_dtype:  # Q/DQ saturates at the ends of a byte
            codes = op.Clip(codes, code(qmin), code(qmax))
        return op.DequantizeLinear(codes, s, z)

    def onnx_conv(
        x: Any, codes: Any, scale: Any, bias: Any, step: Any,
        stride: Any, before: Any, after: Any, dilation: Any, groups: int,
    ) -> Any:  # fmt: skip
        weight, shift = op.DequantizeLinear(codes, scale, axis=0), op.DequantizeLinear(bias, step, axis=0)
        pads = [*before, *after]
        return op.Conv(x, weight, shift, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)

    def onnx_linear(x: Any, codes: Any, scale: Any, bias: Any, step: Any) -> Any:
        weight, shift = op.DequantizeLinear(codes, scale, axis=0), op.DequantizeLinear(bias, step, axis=0)
        if x.shape is not None and len(x.shape) == 2:
            return op.Gemm(x, weight, shift, transB=1)
        return op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), shift)

    names = torch.ops.fewbit
    return {
        names.qdq.default: onnx_qdq,
        names.qdq_conv.default: onnx_conv,
        names.qdq_linear.default: onnx_linear,
        names.global_average.default: lambda x: op.GlobalAveragePool(x),
    }


def _tensor(value: Tensor) -> Any:
    return require("onnx_ir", "onnx").tensor(value.numpy())
