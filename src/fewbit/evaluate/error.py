"""How far a measured tensor lies from its reference: SQNR, cosine, top-1, rounding and clipping apart.

Everything is a sum, so that batches are added one after the other and nothing but a few numbers is kept:

    SQNR = 10·log10(Σ x² / Σ (x − x̂)²)                                        in dB
    cosine = mean over samples of x·x̂ / (|x|·|x̂|)
    error² = rounding² (the code was not clamped) + clipping² (it was)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.numbers import theory
from fewbit.numbers.theory import ErrorSplit, error_split, sqnr

__all__ = ["ErrorSplit", "SignalNoise", "SplitSums", "cosine", "error_split", "sqnr", "top1_agreement"]


@dataclass
class SignalNoise:
    """Running energies of a reference and of the error against it, over any number of batches."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, reference: Tensor, measured: Tensor) -> None:
        """Count in two tensors of one shape and any floating dtype."""
        x = reference.detach().to(torch.float32)
        error = x - measured.detach().to(torch.float32)
        self.signal += _energy(x)
        self.noise += _energy(error)
        self.count += x.numel()

    def merge(self, other: SignalNoise) -> SignalNoise:
        """Both together, as a new object."""
        return SignalNoise(self.signal + other.signal, self.noise + other.noise, self.count + other.count)

    @property
    def sqnr(self) -> float:
        """dB; infinite when nothing differs, NaN when a value is not finite."""
        if math.isnan(self.noise) or math.isinf(self.noise):
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


@dataclass
class SplitSums:
    """Running rounding and clipping errors of one quantizer, and the rounding error that theory expects."""

    rounding: float = 0.0
    clipping: float = 0.0
    clipped: float = 0.0
    theory: float = 0.0
    signal: float = 0.0
    count: int = 0

    def add(self, x: Tensor, xhat: Tensor, step: Tensor, lo: Tensor, hi: Tensor) -> None:
        """Count in one tensor.

        Args:
            x: The float tensor.
            xhat: What its codes stand for, same shape.
            step: Distance of neighbouring codes, broadcastable to ``x``.
            lo: The smallest representable value, broadcastable to ``x``.
            hi: The largest. A value is clipped when it lies more than half a step outside: only then
                did clamping change its code.
        """
        half = step / 2
        split = theory.error_split(x, xhat, lo - half, hi + half)
        count = x.numel()
        self.rounding += split.rounding_mse * count
        self.clipping += split.clipping_mse * count
        self.clipped += split.clipped_fraction * count
        variance = step.to(torch.float64).square() / 12
        self.theory += variance.expand(x.shape).sum().item()
        self.signal += _energy(x.detach().to(torch.float32))
        self.count += count

    @property
    def split(self) -> ErrorSplit:
        """Mean squared errors over all values."""
        count = max(self.count, 1)
        return ErrorSplit(self.rounding / count, self.clipping / count, self.clipped / count)

    @property
    def power(self) -> float:
        """Mean square of the float values."""
        return self.signal / max(self.count, 1)

    @property
    def theory_ratio(self) -> float | None:
        """Mean rounding error of values that were not clipped, over the mean of step²/12; 1 is as expected.

        Below 1 where values sit on the grid already, such as the zeros after a ReLU. None without data.
        """
        kept = 1 - self.clipped / max(self.count, 1)
        if self.theory == 0 or kept <= 0:
            return None
        return self.rounding / (self.theory * kept)


def cosine(reference: Tensor, measured: Tensor) -> float:
    """Mean cosine similarity of the samples (first dimension; fewer than two dimensions are one sample).

    Two zero vectors count as equal (1), a zero vector against another as unrelated (0).
    """
    x, y = _samples(reference), _samples(measured)
    norms = x.norm(dim=1) * y.norm(dim=1)
    cosines = (x * y).sum(dim=1) / norms.clamp(min=torch.finfo(torch.float64).tiny)
    both_zero = (x == 0).all(dim=1) & (y == 0).all(dim=1)
    return torch.where(both_zero, 1.0, cosines).mean().item()


def top1_agreement(reference: Tensor, measured: Tensor) -> float:
    """Share of rows whose largest score is at the same index.

    Args:
        reference: Scores ``[..., C]``.
        measured: Scores of the same shape.
    """
    return (reference.argmax(dim=-1) == measured.argmax(dim=-1)).to(torch.float64).mean().item()


def _samples(x: Tensor) -> Tensor:
    flat = x.detach().to(torch.float64)
    return flat.reshape(flat.shape[0], -1) if flat.dim() > 1 else flat.reshape(1, -1)


def _energy(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64).item()) ** 2
