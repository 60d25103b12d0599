"""PACT: the clip of activations is learned (Choi et al., arXiv 1805.06085).

``y = clip(x, 0, α)`` is quantized with the step ``α/(2^b − 1)``; α gets the gradient 1 where ``x ≥ α`` and 0 elsewhere
(equation 3). An input that is not one-sided keeps its zero point z: its upper end is α, its lower end follows as
``α·(qmin − z)/(qmax − z)``, and so does its gradient. The paper adds an L2 penalty on α: give it weight decay. Weights
train with the straight-through estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit import calibrate
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train.estimators.ste import SteWeight
from fewbit.train.quantizer import FakeQuantizer, Grid, agreed, positive, wide
from fewbit.train.static_input import fake_input


def weight_quantizer(matrix: Tensor, spec: QSpec, start: Grid, name: str) -> FakeQuantizer:
    """For a weight ``[out, K]``."""
    return SteWeight(matrix, spec, name, start)


def input_quantizer(spec: QSpec, start: Grid | None, name: str) -> FakeQuantizer:
    """For an input with one clip for the tensor."""
    return Pact(spec, name, start)


class Pact(FakeQuantizer):
    """The upper end of the range is a parameter ``alpha``."""

    alpha: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: QSpec, name: str, start: Grid | None) -> None:
        super().__init__(spec, name, start)
        self.learn("alpha", torch.ones(()))
        self.register_buffer("zero_point", None if spec.symmetric else torch.tensor(max(spec.qmin, 0.0)))
        if start is not None:
            self._set(*start)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.started:
            self.begin(x)
        scale, zero_point = self.grid(x)
        return fake_input(x, self.spec, scale, zero_point, learn_rounding=False)

    def grid(self, x: Tensor) -> Grid:
        """``s = α/(qmax − z)``."""
        return positive(wide(self.read("alpha")) / self._above(), self.spec), self.zero_point

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Start from the range of least squared error of the first batch; the same in all processes."""
        bounds = calibrate.solve_tensor("mse", x.detach(), self.spec, name=self.name)
        self._set(*affine.scale_and_zero_point(agreed(bounds.lo), agreed(bounds.hi), self.spec, self.name))
        self._mark_started()

    @torch.no_grad()
    def _set(self, scale: Tensor, zero_point: Tensor | None) -> None:
        if self.zero_point is not None and zero_point is not None:
            # α needs a code above the zero point, which an input without positive values would leave out.
            self.zero_point.copy_(zero_point.clamp(max=self.spec.qmax - 1))
        self.alpha.copy_(scale * self._above())

    def _above(self) -> Tensor | float:
        return self.spec.qmax if self.zero_point is None else self.spec.qmax - self.zero_point
