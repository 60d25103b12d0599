"""Activations to codes at run time: with a calibrated scale, or with one found on the spot."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.kernels import dispatch
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor, PerToken
from fewbit.numbers.spec import QSpec

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QSpec) -> Tensor:
    """Codes of ``x`` with one scale and zero point for the tensor; the memory order of ``x`` (channels-last) is
    kept."""
    x = x.detach().to(torch.float32)
    order = _dense_order(x)
    flat = x.permute(order).contiguous()
    zero = torch.zeros(1, dtype=torch.int32, device=x.device) if zero_point is None else zero_point.reshape(1)
    codes = dispatch.quantize_rows(flat.reshape(1, -1), scale.reshape(1), zero, int(spec.qmin), int(spec.qmax))
    codes = codes.to(spec.format.code_dtype)
    back = [order.index(axis) for axis in range(x.dim())]
    return codes.reshape(flat.shape).permute(back)


def quantize_dynamic(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scale and zero point of ``x``, ranged by its own values at the spec's granularity.

    Unlike calibration this never refuses values: a block of zeros has scale 1, a smaller scale than the smallest normal
    number is raised to it, and one with a NaN or an infinity is NaN, which the product then shows.
    """
    x = x.detach().to(torch.float32)
    grain, shape = spec.granularity, tuple(x.shape)
    if x.numel() == 0:
        empty = torch.ones(grain.scale_shape(shape), device=x.device)
        codes = torch.zeros(shape, dtype=spec.format.code_dtype, device=x.device)
        return codes, empty, None if spec.symmetric else torch.zeros_like(empty, dtype=torch.int32)
    blocks = grain.to_blocks(x).contiguous()
    if spec.symmetric and spec.format.code_dtype == torch.int8 and spec.qmax > 0:
        codes, scale = dispatch.quantize_rows_dynamic(blocks, int(spec.qmax))
        zero = None
    else:
        scale, zero = _range(blocks, spec)
        codes = dispatch.quantize_rows(blocks, scale, zero, int(spec.qmin), int(spec.qmax))
        codes = codes.to(spec.format.code_dtype)
    scale_shape = grain.scale_shape(shape)
    zero_point = None if spec.symmetric or zero is None else zero.reshape(scale_shape)
    return grain.from_blocks(codes, shape), scale.reshape(scale_shape), zero_point


def _range(blocks: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    ends: Tensor = dispatch.minmax_rows(blocks)
    low, high = ends[:, 0].clamp(max=0), ends[:, 1].clamp(min=0)
    if spec.symmetric:
        width = torch.maximum(low.neg(), high) / (spec.qmax or -spec.qmin)
    else:
        width = high / (spec.qmax - spec.qmin) - low / (spec.qmax - spec.qmin)
    scale = torch.where(width == 0, 1.0, width.clamp(min=_SMALLEST_SCALE))  # NaN stays, so that it shows
    scale = torch.where(scale == math.inf, math.nan, scale)
    zero = torch.zeros_like(scale)
    if not spec.symmetric:
        zero = torch.round(spec.qmin - low / scale).clamp(spec.qmin, spec.qmax)
        zero = torch.where((width > 0) & scale.isfinite(), zero, 0.0)  # 0 for NaN, too
    return scale.contiguous(), zero.to(torch.int32).contiguous()


def _dense_order(x: Tensor) -> list[int]:
    """The axes from slowest to fastest in memory, so that a dense tensor is walked without a copy."""
    if x.is_contiguous():
        return list(range(x.dim()))
    strides = tuple(x.stride())
    return sorted(range(x.dim()), key=lambda axis: (-strides[axis], axis))


def integer_activations(spec: QSpec, dynamic: bool) -> str | None:
    """Why a spec cannot serve as activations of an integer product, or None when it can."""
    if not spec.format.is_integer:
        return f"activations in {spec.format.name} have no integer product"
    if not dynamic and not isinstance(spec.granularity, PerTensor):
        return "static activations have one scale for the tensor"
    if isinstance(spec.granularity, PerGroup):
        signed = spec.symmetric and spec.format.qmin < 0 and spec.bits <= 8 and spec.qmax > 0
        if not signed or spec.granularity.size % 32:
            return "activations with scales per group are symmetric, of 8 bits at most, in groups of a multiple of 32"
        return None
    if not isinstance(spec.granularity, PerTensor | PerToken) and spec.granularity != PerChannel(0):
        return f"no product takes activations with scales per {spec.granularity}; use token or tensor"
    return None
