"""Fake quantization of inputs with one scale, in few passes over memory.

On the CPU a training step is bound by memory, and the plain formula of the straight-through gradient walks over an
activation some twenty times. With the values x̂ kept from the forward, ``s·∂x̂/∂s`` is ``x̂ − x`` inside the range and
``x̂`` where it is clipped, so the scale's gradient is ``(⟨g_in, x̂ − x⟩ + ⟨g − g_in, x̂⟩)/s`` with ``g_in`` the gradient
that passes. Codes come from the kernel that the deployed layer runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.kernels import activations
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec


def fake_input(
    x: Tensor,
    spec: QSpec,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    learn_rounding: bool = False,
    by_range: bool = True,
) -> Tensor:
    """:func:`fewbit.numbers.affine.straight_through` for inputs; the two may differ at ties on the edge of the range.

    Args:
        x: Any shape.
        spec: One scale for the tensor, else the plain formula is used.
        scale: ``()``.
        zero_point: ``()``, or None.
        learn_rounding: As in the plain formula.
        by_range: As in the plain formula.
    """
    # The kernel gives NaN a code; the plain formula lets it show. A sum finds one in a single pass.
    if not _fits(x, spec, scale) or bool(x.detach().sum().isnan()):
        return affine.straight_through(x, spec, scale, zero_point, learn_rounding=learn_rounding, by_range=by_range)
    margin = 0.0 if by_range else 0.5
    result: Tensor = _FakeInput.apply(x, scale, zero_point, spec, learn_rounding, margin)  # type: ignore[no-untyped-call]
    return result


def _fits(x: Tensor, spec: QSpec, scale: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype == torch.float64 or x.numel() == 0:
        return False
    return scale.dim() == 0 and scale.dtype == torch.float32 and spec.format.is_integer and spec.bits <= 8


class _FakeInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        spec: QSpec,
        learn_rounding: bool,
        margin: float,
    ) -> Tensor:
        zero = 0 if zero_point is None else int(zero_point)
        whole = None if zero_point is None else zero_point.to(torch.int32)
        codes = activations.quantize_static(x, scale, whole, spec)
        # |q − z| ≤ 256 is exact in bfloat16, too; in float16 and float32 anyway.
        value = codes.to(x.dtype)
        value = (value.sub_(zero) if zero else value).mul_(float(scale))
        ctx.save_for_backward(x, value, scale)
        ctx.ends = float(scale) * (spec.qmin - zero - margin), float(scale) * (spec.qmax - zero + margin)
        ctx.learn_rounding = learn_rounding
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, value, scale = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, x, *ctx.ends)
        to_scale = to_zero = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            clipped = gradient - passed
            if ctx.needs_input_grad[1]:
                to_scale = _dot(clipped, value)
                to_scale = to_scale + _dot(passed, value - x) if ctx.learn_rounding else to_scale
                to_scale = to_scale / scale
            if ctx.needs_input_grad[2]:
                to_zero = -_sum(clipped) * scale
        return passed, to_scale, to_zero, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _sum(a * b)


def _sum(x: Tensor) -> Tensor:
    """Sample by sample first: a 16-bit tensor would be copied whole to be summed in float32."""
    each = x.sum(dim=tuple(range(1, x.dim()))) if x.dim() > 1 else x
    return each.sum(dtype=torch.float32)
