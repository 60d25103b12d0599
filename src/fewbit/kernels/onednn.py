"""int8 products through oneDNN as torch ships it, weights prepacked once.

Only where it is exact: without VNNI oneDNN multiplies through ``vpmaddubsw``, which saturates at int16.
:func:`available` therefore runs one product of extreme codes and compares it with the right integer, instead of
trusting a CPU flag.
oneDNN is fast for uint8 activations and int8 weights alone, so callers pass activations as uint8.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# The int32 accumulator cannot overflow up to this K: 255 · 128 · K < 2^31.
MAX_DEPTH = (2**31 - 1) // (255 * 128)


def pack_linear(codes: Tensor) -> Tensor:
    """Prepack int8 ``[N, K]``."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def linear(
    x: Tensor, x_scale: float, x_zero_point: int, packed: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``s_x s_w (X − z_x) Wᵀ + bias``: uint8 ``[M, K]`` by prepacked int8 ``[N, K]``, scales ``[N]``; float32 ``[M,
    N]``."""
    zeros = torch.zeros(scale.shape, dtype=torch.int32)
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, x_scale, x_zero_point, packed, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


def pack_conv(
    codes: Tensor,
    scale: Tensor,
    x_zero_point: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Prepack int8 ``[O, C/groups, *kernel]`` for one geometry."""
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        codes, scale, 1.0, x_zero_point, stride, padding, dilation, groups, None
    )
    return packed


def conv(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """``s_x s_w conv(X − z_x, W) + bias``: uint8 activations; float32, in channels-last order for images."""
    zeros = torch.zeros(scale.shape, dtype=torch.int32)
    result: Tensor = torch.ops.onednn.qconv_pointwise(
        x, x_scale, x_zero_point, packed, scale, zeros, bias, stride, padding, dilation, groups,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return result


@functools.cache
def available() -> bool:
    """Whether torch has these operators here and they give exact integers for the most extreme codes."""
    try:
        return _exact_linear() and _exact_conv()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _exact_linear() -> bool:
    depth = 256
    x = torch.full((3, depth), 255, dtype=torch.uint8)
    weight = torch.full((16, depth), -128, dtype=torch.int8)
    weight[1::2] = 127
    result = linear(x, 1.0, 1, pack_linear(weight), torch.ones(16))
    expected = (x.to(torch.float64) - 1) @ weight.to(torch.float64).t()
    return bool((result.to(torch.float64) == expected).all())


def _exact_conv() -> bool:
    x = torch.full((1, 16, 5, 5), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((16, 16, 3, 3), -128, dtype=torch.int8)
    weight[1::2] = 127
    scale = torch.ones(16)
    packed = pack_conv(weight, scale, 1, (1, 1), (1, 1), (1, 1), 1)
    result = conv(x, 1.0, 1, packed, scale, None, (1, 1), (1, 1), (1, 1), 1)
    centred = x.to(torch.float64) - 1
    expected = torch.conv2d(centred, weight.to(torch.float64), padding=1)
    return bool((result.to(torch.float64) == expected).all())
