"""Bias correction (Nagel et al., arXiv 1906.04721, section 4.2): the mean that rounding a weight moves is taken back.

Rounding a weight changes the mean of the layer's output by ``E[Ŵx] − E[Wx] = (Ŵ − W) E[x]``. The mean input E[x] is
measured on calibration data (empirical, appendix D), or follows from the batch norm before it: its output is taken to
be normal with mean β and standard deviation γ, and the activation function clips it (analytic, equation 20 and
appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.errors import FewbitError

#: How biases are corrected.
MODES = ("empirical", "analytic", "none")


def mode(wanted: bool | str, batch_norms: bool = True) -> str:
    """The name of a mode; True is ``empirical``, False is ``none``.

    Args:
        wanted: As the user says it.
        batch_norms: Whether the model is of a kind that can have some.

    Raises:
        FewbitError: There is no such mode, or not for this kind of model.
    """
    if isinstance(wanted, bool):
        return "empirical" if wanted else "none"
    if wanted not in MODES:
        raise FewbitError(f"bias correction is {', '.join(MODES)}, not {wanted!r}")
    if wanted == "analytic" and not batch_norms:
        raise FewbitError("analytic bias correction reads the batch norms of a PyTorch model; use the empirical one")
    return wanted


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


def clipped_normal(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``clip(x, low, high)`` for normal x.

    With ``α = (low − μ) / σ``, ``β = (high − μ) / σ``, the density φ and the distribution Φ of the standard normal:
    ``E[clip(x)] = low Φ(α) + high (1 − Φ(β)) + μ (Φ(β) − Φ(α)) − σ (φ(β) − φ(α))``, and for the square likewise.

    Args:
        mean: μ, any shape.
        std: σ of the same shape, not negative; 0 is a constant.
        low: Lower end, may be minus infinity.
        high: Upper end, may be infinity.

    Returns:
        float64 tensors of that shape.
    """
    mean, std = mean.double(), std.double()
    safe = std.clamp(min=1e-30)
    alpha, beta = (low - mean) / safe, (high - mean) / safe
    below, above = _distribution(alpha), 1 - _distribution(beta)
    between = 1 - below - above
    at_low, at_high = _density(alpha), _density(beta)
    first = mean * between - std * (at_high - at_low)
    edge_low, edge_high = _edge(alpha, at_low), _edge(beta, at_high)
    second = (mean**2 + std**2) * between - 2 * mean * std * (at_high - at_low) - std**2 * (edge_high - edge_low)
    for end, share in ((low, below), (high, above)):
        if math.isfinite(end):
            first, second = first + end * share, second + end**2 * share
    first = torch.where(std > 0, first, mean.clamp(low, high))
    return first, torch.where(std > 0, (second - first**2).clamp(min=0), 0.0)


def _distribution(x: Tensor) -> Tensor:
    found: Tensor = torch.special.ndtr(x)
    return found


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.clamp(-1e3, 1e3) ** 2) / math.sqrt(2 * math.pi)


def _edge(x: Tensor, density: Tensor) -> Tensor:
    """``x φ(x)``, 0 at infinity."""
    return torch.where(torch.isfinite(x), x.clamp(-1e3, 1e3) * density, 0.0)
