"""Magnitudes and scales of input channels, for searches that move scale between a layer and what feeds it."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(values: Tensor, channels: Tensor, how: str) -> Tensor:
    """One value for each feeding channel: the mean or the largest of the input channels that it feeds.

    Args:
        values: ``[K]``.
        channels: int64 ``[K]``, the feeding channel of each input channel.
        how: ``"mean"`` or ``"amax"``.
    """
    out = torch.zeros(int(channels.max()) + 1, dtype=values.dtype)
    return out.scatter_reduce(0, channels, values, how, include_self=False)


def normalized(scale: Tensor) -> Tensor:
    """The scale over the geometric middle of its extremes, kept between 1e-4 and 1e4."""
    return (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-4, 1e4)


def evenly(weight: Tensor, rows: int) -> Tensor:
    """At most so many rows of a matrix, evenly spaced."""
    if weight.shape[0] <= rows:
        return weight
    return weight[torch.linspace(0, weight.shape[0] - 1, rows).round().long()]
