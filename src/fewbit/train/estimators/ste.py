"""The straight-through estimator with clipped gradient (arXiv 1308.3432; arXiv 1712.05877, section 3).

Rounding has the derivative 0 almost everywhere, which trains nothing. The estimator lets the gradient pass where the
code is not clipped and stops it where it is. Why that is right on average: let the value be spread by noise ``u`` that
is uniform over one step, as the noise of training spreads it. Then ``E[s·round((w + u)/s)] = w`` inside the range,
whose derivative is exactly 1: the straight-through gradient is the true gradient of the smoothed function. At the ends
of the range the smoothed function saturates, and its derivative is 0.

    >>> import torch
    >>> from fewbit.numbers.affine import fake_quantize
    >>> s, w = torch.tensor(0.1), torch.linspace(-1, 1, 9)  # int4: -0.8 … 0.7
    >>> noise = (torch.arange(10_000) + 0.5) / 10_000 * s - s / 2
    >>> def smooth(w): return fake_quantize(w[:, None] + noise, "int4/tensor/sym", scale=s).mean(1)
    >>> (smooth(w + 0.005) - smooth(w - 0.005)) / 0.01  # finite differences of the expectation
    tensor([0.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 0.0000, 0.0000])

Ranges are not learned: a weight's follows its own extremes, narrowed by the ratio that post-training quantization found
best; an input's is the moving average of its batches' extremes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train.gradient import recomputing
from fewbit.train.observer import MovingRange
from fewbit.train.quantizer import FakeQuantizer, Grid
from fewbit.train.static_input import fake_input


def weight_quantizer(matrix: Tensor, spec: QSpec, start: Grid, name: str) -> FakeQuantizer:
    """For a weight ``[out, K]``."""
    return SteWeight(matrix, spec, name, start)


def input_quantizer(spec: QSpec, start: Grid | None, name: str) -> FakeQuantizer:
    """For an input with one range for the tensor."""
    return SteInput(spec, name, start)


class SteWeight(FakeQuantizer):
    """Ranges that follow the weight until they are frozen."""

    clip: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, matrix: Tensor, spec: QSpec, name: str, start: Grid) -> None:
        super().__init__(spec, name, start)
        low, high = self._extremes(matrix)
        full, _ = affine.scale_and_zero_point(low, high, spec, name)
        self.register_buffer("clip", (start[0] / full).clamp(max=1.0))
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        """``[out, K]`` on the grid."""
        if self.training and not self.frozen:
            with torch.no_grad():
                low, high = self._extremes(x)
                self.low.copy_(low)
                self.high.copy_(high)
        scale, zero_point = self._grid() if self.training else self.grid(x)
        return affine.straight_through(x, self.spec, scale, zero_point)

    def grid(self, x: Tensor) -> Grid:
        """From the weight as it is now, or from the frozen range."""
        return self._grid() if self.frozen else self._grid(*self._extremes(x))

    def _grid(self, low: Tensor | None = None, high: Tensor | None = None) -> Grid:
        low, high = self.low if low is None else low, self.high if high is None else high
        clip = self.clip.float()
        return affine.scale_and_zero_point(low.float() * clip, high.float() * clip, self.spec, self.name)

    @torch.no_grad()
    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self.spec.granularity.to_blocks(x.detach().float())
        shape = self.spec.granularity.scale_shape(tuple(x.shape))
        low, high = torch.aminmax(blocks, dim=1)
        return low.reshape(shape), high.reshape(shape)


class SteInput(FakeQuantizer):
    """A moving average of the batches' ranges until it is frozen."""

    def __init__(self, spec: QSpec, name: str, start: Grid | None) -> None:
        super().__init__(spec, name, start)
        self.range = MovingRange()
        if start is not None:
            zero = 0.0 if start[1] is None else start[1].float()
            self.range.start(start[0] * (spec.qmin - zero), start[0] * (spec.qmax - zero))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.training and not self.frozen and not recomputing():
            self.range.update(x)
            if not self.started and x.numel():
                self._mark_started()
        scale, zero_point = self.grid(x)
        return fake_input(x, self.spec, scale, zero_point, by_range=False)

    def grid(self, x: Tensor) -> Grid:
        """From the moving average."""
        return affine.scale_and_zero_point(*self.range.bounds(), self.spec, self.name)
