"""Convolutions and linear layers from uint8 codes to uint8 codes (or to float, where nothing on integers follows).

oneDNN computes ``round((acc · s_x s_w + b) / s_y) + z_y`` in float32 and saturates, so that its codes differ from the
exact rounding only where a value lies within float32's rounding of a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fewbit.integer.lower import LayerNumbers
from fewbit.kernels import onednn, portable, products, reference
from fewbit.kernels.dispatch import forced_isa
from fewbit.kernels.products import Geometry

Kernel = Callable[[Tensor], Tensor]


def fast_here(depth: int) -> bool:
    """Whether oneDNN is exact on this machine for sums of this many products, and no other backend was asked for."""
    return forced_isa() not in ("reference", "portable") and depth <= onednn.MAX_DEPTH and onednn.available()


def linear_kernel(numbers: LayerNumbers, clip: tuple[float, float] | None) -> Kernel:
    """uint8 ``[..., K]`` to uint8 codes counted from 0 ``[..., N]``, or float32."""
    zero = numbers.x.zero_point - numbers.x.qmin
    if not fast_here(numbers.codes.shape[1]):
        weight = numbers.codes
        return _finished(lambda x: portable.int_matmul(x, weight, zero, 0), numbers, clip, channel_axis=-1)
    packed, scale = onednn.pack_linear(numbers.codes), (numbers.step / numbers.x.scale).to(torch.float32)
    bias = (numbers.bias * numbers.step).to(torch.float32)
    zeros, dtype, y_scale, y_zero = _output(numbers)
    run = torch.ops.onednn.qlinear_pointwise.default
    x_scale, clamp = numbers.x.scale, _clamp(numbers, clip)

    def kernel(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        result: Tensor = run(rows, x_scale, zero, packed, scale, zeros, bias, y_scale, y_zero, dtype, "none", [], "")
        return clamp(result.reshape(*x.shape[:-1], -1))

    return kernel


def conv_kernel(numbers: LayerNumbers, geometry: Geometry, clip: tuple[float, float] | None) -> Kernel:
    """uint8 ``[N, C, *spatial]`` to uint8 codes counted from 0 ``[N, O, *out]``, or float32."""
    zero = numbers.x.zero_point - numbers.x.qmin
    if not fast_here(numbers.codes[0].numel()):
        return _finished(_portable_conv(numbers, geometry, zero), numbers, clip, channel_axis=1)
    scale, bias = (numbers.step / numbers.x.scale).to(torch.float32), (numbers.bias * numbers.step).to(torch.float32)
    zeros, dtype, y_scale, y_zero = _output(numbers)
    run = torch.ops.onednn.qconv_pointwise.default
    x_scale, clamp, out_channels = numbers.x.scale, _clamp(numbers, clip), len(scale)
    packed: dict[Geometry, Tensor] = {}
    plans: dict[torch.Size, tuple[Geometry, bool]] = {}

    def kernel(x: Tensor) -> Tensor:
        shape = x.shape
        if shape not in plans:
            tamed, fitted = products._tamed(x, geometry, zero, out_channels)
            plans[shape] = (fitted, tamed is x)
        fitted, as_it_is = plans[shape]
        if not as_it_is:
            x, _ = products._tamed(x, geometry, zero, out_channels)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if fitted not in packed:
            packed[fitted] = _pack(numbers.codes, scale, zero, fitted)
        padding = [before for before, _ in fitted.padding]
        result: Tensor = run(
            x, x_scale, zero, packed[fitted], scale, zeros, bias, fitted.stride, padding, fitted.dilation,
            fitted.groups, y_scale, y_zero, dtype, "none", [], "",
        )  # fmt: skip
        return clamp(result)

    return kernel


def _pack(codes: Tensor, scale: Tensor, zero: int, geometry: Geometry) -> Tensor:
    padding = tuple(before for before, _ in geometry.padding)
    return onednn.pack_conv(codes, scale, zero, geometry.stride, padding, geometry.dilation, geometry.groups)


def _output(numbers: LayerNumbers) -> tuple[Tensor, torch.dtype, float, int]:
    zeros = torch.zeros(len(numbers.step), dtype=torch.int32)
    if numbers.y is None:
        return zeros, torch.float32, 1.0, 0
    return zeros, torch.uint8, numbers.y.scale, numbers.y.zero_point - numbers.y.qmin


def _clamp(numbers: LayerNumbers, clip: tuple[float, float] | None) -> Kernel:
    """What saturation to uint8 does not do already."""
    if numbers.y is None:
        return (lambda x: x) if clip is None else (lambda x: x.clamp_(*clip))
    low, high = numbers.low - numbers.y.qmin, numbers.high - numbers.y.qmin
    if (low, high) == (0, 255):
        return lambda x: x
    return lambda x: x.clamp_(low, high)


def _portable_conv(numbers: LayerNumbers, geometry: Geometry, zero: int) -> Kernel:
    walk = replace(geometry)
    product = reference.wide_conv if forced_isa() == "reference" else portable.int_conv

    def conv(x: Tensor) -> Tensor:
        return product(
            x, numbers.codes, zero, 0,
            stride=walk.stride, padding=walk.padding, dilation=walk.dilation, groups=walk.groups,
        )  # fmt: skip

    return conv


def _finished(product: Kernel, numbers: LayerNumbers, clip: tuple[float, float] | None, channel_axis: int) -> Kernel:
    """Bias, scale and rounding in float64 after an exact integer product."""

    def kernel(x: Tensor) -> Tensor:
        accumulator = product(x).to(torch.float64)
        shape = [1] * accumulator.dim()
        shape[channel_axis] = -1
        real = (accumulator + numbers.bias.reshape(shape)) * numbers.step.reshape(shape)
        if numbers.y is None:
            real = real if clip is None else real.clamp_(*clip)
            return real.to(torch.float32)
        rounded = (real / numbers.y.scale).round_().add_(numbers.y.zero_point)
        return rounded.clamp_(numbers.low, numbers.high).sub_(numbers.y.qmin).to(torch.uint8)

    return kernel
