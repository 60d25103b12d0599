"""Rounding that can be learned: each weight goes up or down by a variable between 0 and 1 that is driven to an end.

``w̃ = s · (clamp(floor(w/s) + h(V) + z, qmin, qmax) − z)``, ``h(V) = clamp(σ(V)(ζ − γ) + γ, 0, 1)`` with ζ = 1.1, γ =
−0.1, and the penalty ``Σ 1 − |2h − 1|^β`` whose β falls while it learns (AdaRound, arXiv 2004.10568, equations 22 to
24).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.qtensor import QTensor

_ZETA, _GAMMA = 1.1, -0.1
_FIRST_BETA, _LAST_BETA = 20.0, 2.0
_WARM_UP = 0.2  # the share of the steps in which nothing is driven


class SoftRounding:
    """The rounding of one weight.

    Args:
        weight: Float, of the shape of ``start``.
        start: Its codes, scale and zero point on an integer grid; scales and zero points are kept.
        name: Named in errors.
        firmness: How near to the start's codes learning begins: 0 at the weight itself, 1 at the codes.

    Attributes:
        variable: V, to be learned; h goes between the start's code and its neighbour towards the weight.

    Raises:
        FewbitError: The grid is not of integers.
    """

    def __init__(self, weight: Tensor, start: QTensor, name: str = "weight", firmness: float = 0.0) -> None:
        spec = start.spec
        if not spec.format.is_integer:
            raise FewbitError(f"{name}: rounding is learned on grids of integers, not on {spec.format.name}")
        self.start, grain = start, spec.granularity
        blocked = grain.blocked(weight.detach().to(torch.float32))
        self.step = grain.expand(start.scale, len(start.shape))
        zero = torch.zeros_like(start.scale) if start.zero_point is None else start.zero_point.to(torch.float32)
        self.zero = grain.expand(zero, len(start.shape))
        scaled = blocked / self.step
        codes = grain.blocked(spec.format.decode(start.codes)) - self.zero
        self.floor = torch.minimum(torch.maximum(torch.floor(scaled), codes - 1), codes)
        fraction = (1 - firmness) * (scaled - self.floor) + firmness * (codes - self.floor)
        fraction = fraction.clamp(1e-4, 1 - 1e-4)
        self.variable = -torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)
        self.variable.requires_grad_(True)

    def up(self) -> Tensor:
        """h(V): how far each weight is rounded up, between 0 and 1, blocked as the granularity blocks."""
        return (torch.sigmoid(self.variable) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def weight(self) -> Tensor:
        """w̃ of the weight's shape, with a gradient."""
        return self._dequantized(self.floor + self.up())

    def penalty(self, done: float) -> Tensor:
        """``Σ 1 − |2h − 1|^β``; 0 in the first fifth.

        Args:
            done: The share of the steps that are done.
        """
        if done < _WARM_UP:
            return torch.zeros(())
        along = (done - _WARM_UP) / (1 - _WARM_UP)
        beta = _LAST_BETA + (_FIRST_BETA - _LAST_BETA) * 0.5 * (1 + math.cos(math.pi * along))
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    def settled(self) -> QTensor:
        """Every weight at the end it is nearer to."""
        spec = self.start.spec
        with torch.no_grad():
            values = self._clamped(self.floor + (self.up() >= 0.5).to(torch.float32))
            codes = spec.format.encode(spec.granularity.unblocked(values, self.start.shape))
        return QTensor(codes, self.start.scale, self.start.zero_point, spec, self.start.shape)

    def _clamped(self, moved: Tensor) -> Tensor:
        spec = self.start.spec
        return (moved + self.zero).clamp(spec.qmin, spec.qmax)

    def _dequantized(self, moved: Tensor) -> Tensor:
        values = (self._clamped(moved) - self.zero) * self.step
        padded = self.start.spec.granularity.unblocked(values, self.start.shape)
        return padded[..., : self.start.shape[-1]]
