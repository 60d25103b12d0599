"""Exact integer products in float64 units: for machines and devices without a fast int8 product that does not saturate.

Codes are integers of at most 16 bits, so every partial sum over K stays below 2^53 for K up to 2^21 and is held
exactly; the result is the integer that an int64 accumulator would hold.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewbit.kernels import reference

_CONV: dict[int, Callable[..., Tensor]] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def int_matmul(x: Tensor, weight: Tensor, x_zero_point: Tensor | int, weight_zero_point: Tensor | int) -> Tensor:
    """``(X − z_x)(W − z_w)ᵀ`` of codes ``[M, K]`` and ``[N, K]``; float64 integers ``[M, N]``.

    ``x_zero_point`` broadcasts to ``[M, 1]``, ``weight_zero_point`` to ``[N, 1]``.
    """
    return (x.to(torch.float64) - x_zero_point) @ (weight.to(torch.float64) - weight_zero_point).t()


def int_conv(
    x: Tensor,
    weight: Tensor,
    x_zero_point: int,
    weight_zero_point: Tensor | int,
    *,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """As :func:`fewbit.kernels.reference.int_conv`; float64 integers."""
    centred = reference._pad(x.to(torch.float64) - x_zero_point, padding, 0)
    if isinstance(weight_zero_point, Tensor):
        weight_zero_point = weight_zero_point.reshape(-1, *[1] * (weight.dim() - 1))
    kernel = weight.to(torch.float64) - weight_zero_point
    return _CONV[len(stride)](centred, kernel, None, stride, 0, dilation, groups)
