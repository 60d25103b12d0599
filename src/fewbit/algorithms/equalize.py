"""Cross-layer equalization and high-bias absorption: the same network with weights that lose less when they share a
scale.

Source: Nagel et al., arXiv 1906.04721 (DFQ). For two layers with a function f between them that is positively
homogeneous, ``f(s x) = s f(x)``, output channel i of the first may be divided by s_i and input channel i of the second
multiplied by it (equations 6 to 8); ``s_i = sqrt(r1_i / r2_i)`` gives both the same range (equation 11). A channel
whose output lies above some c nearly always may hand c to the next layer's bias (section 4.1.3, equations 13 to 15).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Beyond this a channel is dead on one side, and scaling it further gains nothing.
_MOST = 2.0**12


def factors(first: Tensor, second: Tensor, least: Tensor | None = None) -> Tensor:
    """What each channel between two layers is divided by.

    Args:
        first: Largest magnitude of each of the first layer's rows, ``[channels]``.
        second: Largest magnitude of the second layer's weights behind each channel, ``[channels]``.
        least: The smallest factor that each channel allows, ``[channels]``; infinite where it must stay as it is.

    Returns:
        float64 ``[channels]``, 1 where one of the sides is zero.
    """
    first, second = first.double(), second.double()
    ratio = first / torch.where(second > 0, second, 1.0)
    found = torch.where((first > 0) & (second > 0), ratio.sqrt(), 1.0).clamp(1 / _MOST, _MOST)
    if least is None:
        return found
    return torch.where(torch.isfinite(least), torch.maximum(found, least.double()), 1.0)


def absorbed(mean: Tensor, std: Tensor, deviations: float = 3.0) -> Tensor:
    """How much of each channel the next layer's bias can take: ``c = max(0, β − 3 γ)``.

    A normal value lies above it in 99.87 of 100 cases; there ``relu(x − c) + c = relu(x)``.

    Args:
        mean: Of the channel before the activation function, ``[channels]``.
        std: Its standard deviation.
        deviations: How many of them below the mean c lies.
    """
    return (mean.double() - deviations * std.double()).clamp(min=0)


def row_range(weight: Tensor) -> Tensor:
    """Largest magnitude of each output channel of a weight ``[out, in/groups, *kernel]``."""
    return weight.detach().flatten(1).abs().amax(1)


def column_range(weight: Tensor, groups: int) -> Tensor:
    """Largest magnitude behind each input channel, ``[in]``."""
    return by_input(weight.detach(), groups).abs().amax((1, 3)).flatten()


def by_input(weight: Tensor, groups: int) -> Tensor:
    """A weight as ``[groups, out/groups, in/groups, kernel]``, a view where that is possible."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def scaled_columns(weight: Tensor, groups: int, factor: Tensor) -> Tensor:
    """A weight whose input channels are multiplied by ``factor [in]``, float64."""
    spread = factor.double().reshape(groups, 1, -1, 1)
    return (by_input(weight.detach().double(), groups) * spread).reshape(weight.shape)


def shift(weight: Tensor, groups: int, amount: Tensor) -> Tensor:
    """What a layer without a border adds to its output where its input has ``amount [in]`` more, float64 ``[out]``."""
    sums = by_input(weight.detach().double(), groups).sum(3)
    return torch.einsum("goi,gi->go", sums, amount.double().reshape(groups, -1)).flatten()
