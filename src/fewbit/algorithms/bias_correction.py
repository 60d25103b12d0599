"""Empirical bias correction (Nagel et al., arXiv 1906.04721, section 4.2 and appendix D).

Rounding a weight changes the mean of the layer's output by ``E[Ŵx] − E[Wx] = (Ŵ − W) E[x]``. The bias takes that back,
with the mean input measured on calibration data.
"""

from __future__ import annotations

import torch
from torch import Tensor


def correction(weight: Tensor, quantized: Tensor, mean_input: Tensor) -> Tensor:
    """What to add to the bias: ``(W − Ŵ) E[x]``.

    Args:
        weight: Float weight ``[out, K]``.
        quantized: Its dequantized version ``[out, K]``.
        mean_input: ``[groups, K]``, the mean input of each channel group.

    Returns:
        float64 ``[out]``.
    """
    groups = mean_input.shape[0]
    lost = (weight.to(torch.float64) - quantized.to(torch.float64)).reshape(groups, -1, weight.shape[1])
    return torch.einsum("gok,gk->go", lost, mean_input.to(torch.float64)).reshape(-1)
