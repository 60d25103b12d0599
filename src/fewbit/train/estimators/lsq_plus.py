"""LSQ+: step and offset are learned (Bhalgat et al., arXiv 2004.09576).

``v̂ = s·clip(round((v − β)/s), Q_N, Q_P) + β``, whose offset gets the gradient 0 inside the range and 1 where the value
is clipped (equation 7), and whose step gets ``round(·) − (v − β)/s`` inside and ``Q_N`` or ``Q_P`` outside (equation
6). So that 0 stays exact and products stay integer, the offset is used as the zero point ``z = round(−β/s)``, through
whose rounding the gradient passes. Both gradients are scaled as LSQ's. Symmetric specs have no offset and train as LSQ
does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.numbers.spec import QSpec
from fewbit.train.estimators.lsq import Lsq
from fewbit.train.gradient import substitute
from fewbit.train.quantizer import FakeQuantizer, Grid, positive, wide


def weight_quantizer(matrix: Tensor, spec: QSpec, start: Grid, name: str) -> FakeQuantizer:
    """For a weight ``[out, K]``."""
    return Lsq(spec, name, start, weight=True) if spec.symmetric else LsqPlus(spec, name, start, weight=True)


def input_quantizer(spec: QSpec, start: Grid | None, name: str) -> FakeQuantizer:
    """For an input with one step and offset for the tensor."""
    return Lsq(spec, name, start, weight=False) if spec.symmetric else LsqPlus(spec, name, start, weight=False)


class LsqPlus(Lsq):
    """A step and an offset that are parameters."""

    offset: Tensor

    def __init__(self, spec: QSpec, name: str, start: Grid | None, weight: bool) -> None:
        super().__init__(spec, name, start, weight)
        assert self.zero_point is not None
        self.learn("offset", -self.scale.detach() * self.zero_point)

    def _grid(self, factor: float) -> Grid:
        """The learned step, and the offset as a zero point within the codes."""
        scale = positive(self.read("scale", factor), self.spec)
        exact = -wide(self.read("offset", factor)) / scale
        rounded = self.spec.format.round(exact.detach()).clamp(self.spec.qmin, self.spec.qmax)
        return scale, substitute(exact, rounded)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Start as LSQ does; the offset follows from the zero point."""
        super().begin(x)
        assert self.zero_point is not None
        self.offset.copy_(-self.scale * self.zero_point)
