"""What a layer multiplies by the rows of its weight: its input's rows, or the patches under a convolution's outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.kernels.products import Geometry


def patch_rows(x: Tensor, walk: Geometry | None, most: int) -> Tensor:
    """An even share of them, of every position the same: float32 ``[groups, n, K]``, n about ``most``.

    Args:
        x: ``[..., K]``, or ``[N, C, *spatial]`` with one or two spatial axes.
        walk: Of a convolution, None for a product.
        most: Rows.
    """
    if walk is None:
        rows = x.reshape(1, -1, x.shape[-1])
        return rows[:, :: math.ceil(rows.shape[1] / most)].contiguous()
    patches = _patches(x if len(walk.kernel) > 1 else x.unsqueeze(2), walk)
    samples, columns, positions = patches.shape
    step = math.ceil(samples * positions / most)
    kept = patches[:, :, step // 2 :: step] if step < positions else patches[:, :, positions // 2 :: positions]
    grouped = kept.reshape(samples, walk.groups, columns // walk.groups, -1)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2).contiguous()


def _patches(x: Tensor, walk: Geometry) -> Tensor:
    """``[N, C · kernel, positions]`` of ``[N, C, H, W]``; a one-dimensional input has a height of 1."""
    pad, kernel, stride, dilation = walk.padding, walk.kernel, walk.stride, walk.dilation
    if len(kernel) == 1:
        pad, kernel, stride, dilation = ((0, 0), *pad), (1, *kernel), (1, *stride), (1, *dilation)
    padded = torch.nn.functional.pad(x, (*pad[1], *pad[0]))
    if kernel == (1, 1):
        return padded[:, :, :: stride[0], :: stride[1]].flatten(2)
    return torch.nn.functional.unfold(padded, kernel, dilation=dilation, stride=stride)
