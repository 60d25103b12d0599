"""What a quantized layer says of inputs that it cannot take."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewbit.errors import FewbitError


def check_input(x: Tensor, integers: bool) -> None:
    """Refuse inputs that would give a wrong result, or an error that does not name its cause.

    Args:
        x: What the layer was called with.
        integers: Whether the products are on integers, which have no derivative.

    Raises:
        FewbitError: No dimensions, no floating point numbers, a transform of ``torch.func``, or a tangent.
    """
    if torch.compiler.is_compiling():
        return
    if not x.is_floating_point():
        raise FewbitError(f"a quantized layer takes floating point inputs, not {x.dtype}; convert them with .float()")
    if x.dim() == 0:
        raise FewbitError("a quantized layer got a tensor without dimensions; the last one holds its inputs")
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise FewbitError(
            "a quantized layer does not run under the transforms of torch.func (vmap, grad, jvp): call the model with "
            "whole batches, and train with fewbit.prepare_qat"
        )
    if integers and has_tangent(x):
        raise FewbitError(
            "products on integers have no forward-mode derivative: quantize with activations of 16 bits, or use the "
            "model of fewbit.prepare_qat"
        )


def has_tangent(x: Tensor) -> bool:
    """Whether forward-mode differentiation asks for this tensor's derivative."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def wants_derivative(x: Tensor) -> bool:
    """Whether a derivative of the layer's output is wanted, of either mode."""
    return (x.requires_grad and torch.is_grad_enabled()) or has_tangent(x)
