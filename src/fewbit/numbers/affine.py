"""The affine map ``q = clamp(round(x/s) + z, qmin, qmax)``, ``x̂ = s·(q − z)``: the only quantize and dequantize.

The same map serves every format: ``round`` goes to the nearest value of the format's grid, ties to even, and z is a
value of that grid. Sources: arXiv 1712.05877, equation 1; ONNX QuantizeLinear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerChannel
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
    kind = not_finite(x)
    if kind is not None:
        raise FewbitError(f"{name} holds {kind}; remove it before quantizing")


def not_finite(x: Tensor) -> str | None:
    """``"NaN"`` or ``"infinity"`` if a tensor holds one, else None; one pass at the speed of memory."""
    if not x.is_floating_point() or x.numel() == 0:
        return None
    x = x.detach()
    low, high = torch.aminmax(x if x.dtype.itemsize > 1 else x.to(torch.float32))  # 8 bits have no comparison
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return None
    return "NaN" if bool(torch.isnan(low) | torch.isnan(high)) else "infinity"


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
    if _checking() and not bool((torch.isfinite(lo) & torch.isfinite(hi) & (lo <= hi)).all()):
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


def _checking() -> bool:
    """Whether values are looked at; a traced graph cannot branch on them."""
    return not torch.compiler.is_compiling()


def _checked_scale(scale: Tensor, width: Tensor, name: str) -> Tensor:
    rounded = torch.where(width > 0, scale, 1.0).to(torch.float32)
    if not _checking():
        return rounded.clamp(min=_SMALLEST_NORMAL)
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
    return straight_through(x, spec, scale.detach(), None if zero_point is None else zero_point.detach())


def simulate(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """The values of :func:`fake_quantize` alone: nothing is checked, no gradient passes, the scale is used as it is.

    Args:
        x: Floating tensor of any shape; the result has its dtype.
        spec: The quantization.
        scale: float32, or float64 to compute all in float64.
        zero_point: Same shape, values on the format's grid.
    """
    grain, wide = spec.granularity, torch.float64 if scale.dtype == torch.float64 else torch.float32
    values = _grid_values(x, spec, scale, zero_point).to(wide)
    if zero_point is not None:
        values -= grain.expand(zero_point, x.dim()).to(wide)
    values *= grain.expand(scale, x.dim()).to(wide)
    padded = grain.unblocked(values, tuple(x.shape))
    return (padded[..., : x.shape[-1]] if padded.shape != x.shape else padded).to(x.dtype)


def straight_through(
    x: Tensor,
    spec: QSpec,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    learn_rounding: bool = False,
    by_range: bool = False,
) -> Tensor:
    """:func:`simulate` with gradients for the input, the scale and the zero point, as the estimators of training need.

    With ``v = x/s + z``, q the code and g the upstream gradient, rounding counts as the identity: inside the range
    ``∂x̂/∂x = 1``, ``∂x̂/∂s = (q − z) − x/s``, ``∂x̂/∂z = 0``; where q is clipped ``∂x̂/∂x = 0``, ``∂x̂/∂s = q − z``,
    ``∂x̂/∂z = −s`` (arXiv 1902.08153, equations 3 and 5).

    Args:
        x: Floating tensor of any shape.
        spec: The quantization.
        scale: Of the spec's scale shape, positive.
        zero_point: Same shape, on the grid; float32 where it is learned.
        learn_rounding: Without it the scale's gradient has the clipped values alone, as for a learned clip.
        by_range: Inside means ``qmin < v < qmax``; without it, that the code was not clipped, which is half a step more
            on each side.
    """
    result: Tensor = _StraightThrough.apply(x, scale, zero_point, spec, learn_rounding, by_range)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QSpec, learn_rounding: bool, by_range: bool
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rule = spec, learn_rounding, by_range
        return simulate(x, spec, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, scale, zero_point = ctx.saved_tensors
        spec, learn_rounding, by_range = ctx.rule
        grain, shape = spec.granularity, tuple(x.shape)
        wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
        zero = 0.0 if zero_point is None else grain.expand(zero_point, x.dim()).to(wide)
        ratio = grain.blocked(x.to(wide)) / grain.expand(scale, x.dim()).to(wide)
        exact = ratio + zero
        code = exact if by_range or not spec.format.is_integer else torch.round(ratio) + zero
        inside = (code > spec.qmin) & (code < spec.qmax) if by_range else (code >= spec.qmin) & (code <= spec.qmax)
        upstream = grain.blocked(gradient.to(wide))
        passed = (upstream * inside) if ctx.needs_input_grad[0] else None
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            steps = (spec.format.round(exact) if not spec.format.is_integer else _saturated(ratio, zero, spec)) - zero
            share = steps - ratio * inside if learn_rounding else steps * ~inside
            to_scale = _by_block(upstream * share, spec, shape).to(scale.dtype)
        if ctx.needs_input_grad[2]:
            to_zero = -(_by_block(upstream * ~inside, spec, shape) * scale).to(zero_point.dtype)
        if passed is not None:
            padded = grain.unblocked(passed, shape)
            passed = (padded[..., : shape[-1]] if padded.shape != x.shape else padded).to(gradient.dtype)
        return passed, to_scale, to_zero, None, None, None


def _saturated(ratio: Tensor, zero: Tensor | float, spec: QSpec) -> Tensor:
    return (torch.round(ratio) + zero).clamp_(spec.qmin, spec.qmax)


def _by_block(blocked: Tensor, spec: QSpec, shape: tuple[int, ...]) -> Tensor:
    """The sum over each block of a blocked view, of the scale's shape."""
    grain, wanted = spec.granularity, spec.granularity.scale_shape(shape)
    if not wanted:
        return blocked.sum()
    if isinstance(grain, PerChannel):
        return blocked.sum([axis for axis in range(blocked.dim()) if axis != grain.axis])
    return blocked.sum(-1).reshape(wanted)


def _scaled(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """``round(x/s) + z`` before clamping for integers, ``x/s + z`` for other grids; blocked, float32 or float64."""
    grain = spec.granularity
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    divisor = scale if scale.dtype == torch.float64 else scale.to(torch.float32)
    scaled = grain.blocked(wide) / grain.expand(divisor, x.dim())
    if spec.format.is_integer:
        scaled = scaled.round_()
    if zero_point is not None:
        scaled += grain.expand(zero_point, x.dim()).to(scaled.dtype)
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
