"""The affine map ``q = clamp(round(x/s) + z, qmin, qmax)``, ``x̂ = s·(q − z)``: the only quantize and dequantize.

The same map serves every format: ``round`` goes to the nearest value of the format's grid, ties to even, and z is a
value of that grid. Sources: arXiv 1712.05877, equation 1; ONNX QuantizeLinear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.scale_type import round_scale
from fewbit.numbers.spec import QSpec, as_spec

_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def check_finite(x: Tensor, name: str) -> None:
    """Refuse what has no affine code.

    Raises:
        FewbitError: The tensor is empty, not floating, or holds NaN or infinity; the message names it.
    """
    if not x.is_floating_point():
        raise FewbitError(f"{name} has dtype {x.dtype}; only floating tensors are quantized")
    if x.numel() == 0:
        raise FewbitError(f"{name} is empty (shape {tuple(x.shape)}); there is nothing to quantize")
    low, high = torch.aminmax(x.detach())
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        kind = "NaN" if bool(torch.isnan(low) | torch.isnan(high)) else "infinity"
        raise FewbitError(f"{name} holds {kind}; remove it before quantizing")


def scale_and_zero_point(
    lo: Tensor, hi: Tensor, spec: QSpec | str, name: str = "tensor"
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point that map the range ``[lo, hi]`` of each block onto the codes.

    Symmetric: ``s = max(|lo|, |hi|) / qmax`` and no zero point. Asymmetric: the range is widened to hold 0,
    ``s = (hi − lo) / (qmax − qmin)``, ``z = clamp(round(qmin − lo/s))``, so that 0 is exact (arXiv 1712.05877, section
    2.1).
    A block of zeros has scale 1 and zero point 0.

    Args:
        lo: The lower end of each block, any shape.
        hi: The upper end, same shape.
        spec: The quantization.
        name: Named in errors.

    Returns:
        float32 scale of the shape of ``lo``, rounded to the spec's scale type, and the zero point (int32, or float32
        for formats that are not integers) or None.

    Raises:
        FewbitError: A bound is NaN or infinite, or lo > hi, or a scale would be subnormal or overflow float32
            or the scale type.
    """
    spec = as_spec(spec)
    lo, hi = lo.to(torch.float64), hi.to(torch.float64)
    if not bool((torch.isfinite(lo) & torch.isfinite(hi) & (lo <= hi)).all()):
        raise FewbitError(f"{name} has a range that is not finite or not in order")
    if spec.symmetric:
        amax = torch.maximum(lo.abs(), hi.abs())
        scale = _checked_scale(amax / (spec.qmax if spec.qmax > 0 else -spec.qmin), amax, name)
        return round_scale(scale, spec, name), None
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = round_scale(_checked_scale((hi - lo) / (spec.qmax - spec.qmin), hi - lo, name), spec, name)
    exact = torch.where(hi > lo, spec.qmin - lo / scale.to(torch.float64), 0.0)
    zero_point = spec.format.round(exact).clamp(spec.qmin, spec.qmax)
    return scale, zero_point.to(torch.int32 if spec.format.is_integer else torch.float32)


def _checked_scale(scale: Tensor, width: Tensor, name: str) -> Tensor:
    rounded = torch.where(width > 0, scale, 1.0).to(torch.float32)
    if bool((rounded < _SMALLEST_NORMAL).any()):
        raise FewbitError(f"{name} is so small that its scale would be subnormal; multiply it by a constant first")
    if not bool(torch.isfinite(rounded).all()):
        raise FewbitError(f"{name} is so large that its scale overflows float32; divide it by a constant first")
    return rounded


def quantize(
    x: Tensor, spec: QSpec | str, *, scale: Tensor, zero_point: Tensor | None = None, name: str = "tensor"
) -> QTensor:
    """Quantize with a given scale and zero point.

    Args:
        x: Floating tensor of any shape; float16 and bfloat16 are computed in float32, float64 in float64.
        spec: The quantization.
        scale: float32 of shape ``spec.granularity.scale_shape(x.shape)``, positive; rounded to the spec's scale type.
        zero_point: Same shape, or None for 0.
        name: Named in errors.

    Raises:
        FewbitError: NaN, infinity or no values in ``x``; a scale of another shape or not positive.
    """
    spec = as_spec(spec)
    check_finite(x, name)
    _check_scale(x, spec, scale, zero_point, name)
    scale = round_scale(scale.to(torch.float32), spec, name)
    values = _grid_values(x, spec, scale, zero_point)
    codes = spec.format.encode(spec.granularity.unblocked(values, tuple(x.shape)))
    return QTensor(codes, scale, zero_point, spec, tuple(x.shape))


def dequantize(t: QTensor) -> Tensor:
    """``s·(q − z)`` in float32, of the original shape."""
    grain = t.spec.granularity
    values = grain.blocked(t.spec.format.decode(t.codes))
    if t.zero_point is not None:
        values = values - grain.expand(t.zero_point, len(t.shape)).to(torch.float32)
    values = values * grain.expand(t.scale, len(t.shape))
    padded = grain.unblocked(values, t.shape)
    return padded[..., : t.shape[-1]] if padded.shape != t.shape else padded


def fake_quantize(x: Tensor, spec: QSpec | str, *, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Quantize and dequantize, with the straight-through gradient.

    The gradient passes unchanged where the code was not clipped and is 0 where it was (arXiv 1308.3432; arXiv
    1712.05877, section 3). Scale and zero point get no gradient.

    Args:
        x: Floating tensor of any shape; the result has its dtype.
        spec: The quantization.
        scale: As in :func:`quantize`.
        zero_point: As in :func:`quantize`.

    Raises:
        FewbitError: As in :func:`quantize`.
    """
    spec = as_spec(spec)
    check_finite(x, "tensor")
    _check_scale(x, spec, scale, zero_point, "tensor")
    scale = round_scale(scale, spec)
    result: Tensor = _StraightThrough.apply(x, spec, scale, zero_point)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        shape, grain = tuple(x.shape), spec.granularity
        unclipped = _scaled(x, spec, scale, zero_point)
        inside = (unclipped >= spec.qmin) & (unclipped <= spec.qmax)
        ctx.save_for_backward(grain.unblocked(inside, shape)[..., : shape[-1]] if shape else inside)
        values = _grid_values(x, spec, scale, zero_point)
        codes = spec.format.encode(grain.unblocked(values, shape))
        return dequantize(QTensor(codes, scale, zero_point, spec, shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


def _scaled(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """``round(x/s) + z`` before clamping for integers, ``x/s + z`` for other grids; blocked, float32 or float64."""
    grain = spec.granularity
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    scaled = grain.blocked(wide) / grain.expand(scale, x.dim()).to(torch.float32)
    if spec.format.is_integer:
        scaled = scaled.round_()
    if zero_point is not None:
        scaled = scaled + grain.expand(zero_point, x.dim()).to(torch.float32)
    return scaled


def _grid_values(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The values q on the format's grid, blocked."""
    scaled = _scaled(x, spec, scale, zero_point)
    # Integers are rounded already; they only saturate.
    return scaled.clamp_(spec.qmin, spec.qmax) if spec.format.is_integer else spec.format.round(scaled)


def _check_scale(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None, name: str) -> None:
    wanted = spec.granularity.scale_shape(tuple(x.shape))
    for what, value in (("scale", scale), ("zero point", zero_point)):
        if value is not None and tuple(value.shape) != wanted:
            raise FewbitError(f"{name}: the {what} of {spec} has shape {wanted}, not {tuple(value.shape)}")
    if not bool(((scale >= _SMALLEST_NORMAL) & torch.isfinite(scale)).all()):
        raise FewbitError(f"{name}: a scale is not a positive normal float32 number")
