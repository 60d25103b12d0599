"""LSQ: the step size is learned with the weights (Esser et al., arXiv 1902.08153).

With ``v̄ = clip(v/s, Q_N, Q_P)`` the gradient of the fake-quantized value by the step is (equation 3)::

    ∂v̂/∂s = round(v/s) − v/s   inside the range,   Q_N or Q_P where clipped

and by the value 1 inside and 0 outside (equation 5). The step's gradient is scaled by ``g = 1/√(N·Q_P)`` (section 2.2),
N being the values that share the step: weights of a block, or features of a sample. Steps start from post-training
ranges, which are at least as good as the paper's ``2⟨|v|⟩/√Q_P``. Zero points stay where they started.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit import calibrate
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train.quantizer import FakeQuantizer, Grid, agreed, positive
from fewbit.train.static_input import fake_input


def weight_quantizer(matrix: Tensor, spec: QSpec, start: Grid, name: str) -> FakeQuantizer:
    """For a weight ``[out, K]``."""
    return Lsq(spec, name, start, weight=True)


def input_quantizer(spec: QSpec, start: Grid | None, name: str) -> FakeQuantizer:
    """For an input with one step for the tensor."""
    return Lsq(spec, name, start, weight=False)


class Lsq(FakeQuantizer):
    """A step that is a parameter, of the spec's scale shape."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: QSpec, name: str, start: Grid | None, weight: bool) -> None:
        super().__init__(spec, name, start)
        self.of_weight = weight
        scale, zero = (torch.ones(()), torch.zeros(())) if start is None else start
        self.learn("scale", scale.detach().float().clone())
        self.register_buffer("zero_point", None if spec.symmetric or zero is None else zero.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; weights as ``[out, K]``."""
        if not self.started:
            self.begin(x)
        scale, zero_point = self._grid(self.gradient_scale(x))
        if self.of_weight:
            return affine.straight_through(x, self.spec, scale, zero_point, learn_rounding=True, by_range=True)
        return fake_input(x, self.spec, scale, zero_point, learn_rounding=True)

    def gradient_scale(self, x: Tensor) -> float:
        """``g = 1/√(N·Q_P)``."""
        values = (
            x.numel() / max(self.scale.numel(), 1)
            if self.of_weight
            else x.numel() / max(x.shape[0] if x.dim() else 1, 1)
        )
        return 1.0 / math.sqrt(max(values, 1.0) * max(self.spec.qmax, 1.0))

    def grid(self, x: Tensor) -> Grid:
        """The learned step and the zero point of the start."""
        return self._grid(1.0)

    def _grid(self, factor: float) -> Grid:
        """With gradients times ``factor``."""
        return positive(self.read("scale", factor), self.spec), self.zero_point

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Start from the range of least squared error of the first batch; the same in all processes."""
        bounds = calibrate.solve_tensor("mse", x.detach(), self.spec, name=self.name)
        scale, zero_point = affine.scale_and_zero_point(agreed(bounds.lo), agreed(bounds.hi), self.spec, self.name)
        self.scale.copy_(scale)
        if self.zero_point is not None and zero_point is not None:
            self.zero_point.copy_(zero_point)
        self._mark_started()
