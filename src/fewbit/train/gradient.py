"""Values with gradients of another's: the two small functions that straight-through estimators are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def substitute(source: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
    """Exactly ``value``; the gradient goes to ``source``, times ``factor``.

    Args:
        source: What is trained.
        value: Of the same shape; gets no gradient.
        factor: Such as LSQ's ``1/√(N·Q_P)``.
    """
    result: Tensor = _Substitute.apply(source, value, factor)  # type: ignore[no-untyped-call]
    return result


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.dtype = factor, source.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return (gradient * ctx.factor).to(ctx.dtype), None, None


def recomputing() -> bool:
    """Whether this forward runs inside a backward, as gradient checkpointing repeats it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
