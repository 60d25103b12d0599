"""Moving-average ranges as buffers, so that a ``state_dict`` holds them (arXiv 1712.05877, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError

MOMENTUM = 0.99  # the paper says "close to 1": what a hundred batches saw decides


class MovingRange(nn.Module):
    """Averages of each batch's smallest and largest value.

    As in :mod:`fewbit.calibrate.moving_average` the state is the raw sum ``r ← a·r + (1 − a)·x`` and its weight
    ``w ← a·w + (1 − a)``; the average is ``r / w``, so that the first batch gives its own range. Nothing branches on
    values, so that a compiled graph can hold the update.

    Args:
        momentum: a, at least 0 and below 1.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def __init__(self, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        for name in ("low", "high", "weight"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        """Begin as if many batches had had this range."""
        self.low.copy_(low)
        self.high.copy_(high)
        self.weight.fill_(1.0)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in one batch; a batch that is empty, or holds NaN or infinity, leaves the range as it was."""
        if x.numel() == 0:
            return
        low, high = torch.aminmax(x.detach())
        finite = torch.isfinite(low) & torch.isfinite(high)
        share = torch.where(finite, 1.0 - self.momentum, 0.0).to(self.weight.dtype)
        for state, new in ((self.low, low), (self.high, high), (self.weight, torch.ones_like(low))):
            state.mul_(1 - share).add_(share * torch.where(finite, new, 0.0).to(state.dtype))

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The averaged ends, float32 ``()`` each."""
        weight = self.weight.float().clamp(min=torch.finfo(torch.float32).tiny)
        return self.low.float() / weight, self.high.float() / weight


def set_momentum(model: nn.Module, momentum: float, estimator: str) -> None:
    """Give every moving average of a prepared model this momentum.

    Raises:
        FewbitError: It is not at least 0 and below 1, or the model has no moving averages.
    """
    if not isinstance(momentum, int | float) or not 0 <= momentum < 1:
        raise FewbitError(f"range_momentum is a number of at least 0 and below 1, not {momentum!r}")
    averages = [module for module in model.modules() if isinstance(module, MovingRange)]
    if not averages:
        raise FewbitError(f"range_momentum is for static activations trained by `ste`; here {estimator} learns them")
    for average in averages:
        average.momentum = float(momentum)
