"""Batch norm folded while it trains: fold, correct, freeze (arXiv 1712.05877, section 3.2; arXiv 1806.08342, section
3.2.2).

Deployed, the layer's weight is ``W·γ/σ``, so training has to quantize that product. σ of a single batch would make the
quantized weight jitter; so the fold uses the running σ. **Fold**: the product is computed with ``Q(W·γ/σ)``.
**Correct**: it is divided by ``γ/σ`` again, and batch norm with the batch's own statistics follows, which is what
training needs. **Freeze**: after enough steps the running statistics are used as they are, the bias becomes
``β + (b − μ)·γ/σ``, and training sees exactly what will be deployed.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.train.gradient import recomputing

SMALLEST_FACTOR = 1e-4  # a γ of 0 would hide the weight from training


class Product(Protocol):
    """Computes a layer with its weight times ``factor [out]`` and the bias ``bias [out]``, or none."""

    def __call__(self, factor: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, channels on axis 1."""


class FoldedNorm(nn.Module):
    """Wraps the batch norm that stood behind a layer.

    Attributes:
        norm: The user's own module: γ, β, running statistics.
        frozen: The running statistics are used and no longer change.
    """

    frozen_flag: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm
        self.frozen = False
        self.register_buffer("frozen_flag", torch.tensor(False))
        self._used: Tensor | None = None

    def freeze(self, frozen: bool) -> None:
        """Freeze the statistics, or thaw."""
        self.frozen_flag.fill_(frozen)
        self.frozen = frozen

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.frozen = bool(self.frozen_flag)

    def forward(self, bias: Tensor | None, product: Product) -> Tensor:
        """The normalized output of a layer.

        Args:
            bias: The layer's own ``[out]``, or None.
            product: Computes the layer.
        """
        factor, shift = self._factor(bias)
        if self.frozen or not self.norm.training:
            return product(factor, shift)
        factor = factor.detach()
        factor = torch.where(factor.abs() < SMALLEST_FACTOR, SMALLEST_FACTOR, factor)
        repeated = recomputing()
        if repeated and self._used is not None:
            factor = self._used  # the first forward has moved the running statistics since
        self._used = factor
        result = product(factor, None)
        result = result * by_channel(factor.reciprocal(), result)
        result = result if bias is None else result + by_channel(bias, result)
        return self._normalized(result, repeated)

    def _normalized(self, x: Tensor, repeated: bool) -> Tensor:
        norm = self.norm
        if repeated:  # by gradient checkpointing, which must not count a batch twice
            statistics = norm.running_mean.clone(), norm.running_var.clone()
            return F.batch_norm(x, *statistics, norm.weight, norm.bias, True, 0.0, norm.eps)
        normalized: Tensor = norm(x)
        return normalized

    def _factor(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        norm = self.norm
        factor = (norm.running_var + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        shift = shift * factor if norm.bias is None else shift * factor + norm.bias
        return factor, shift

    @torch.no_grad()
    def folded(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """``γ/σ`` and ``β + (b − μ)·γ/σ``, float64 ``[out]``, as :func:`fewbit.nn.fold.fold_batch_norm` has them."""
        norm = self.norm
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight.double()
        shift = (0.0 if bias is None else bias.double()) - norm.running_mean.double()
        shift = shift * factor
        return factor, shift if norm.bias is None else shift + norm.bias.double()


def seen_in_training(folded: Tensor, matrix: Tensor) -> Tensor:
    """The matrix ``[out, K]`` that training multiplies with at first: the folded one, but for channels whose γ hides
    them."""
    hidden = matrix * SMALLEST_FACTOR
    lost = folded.abs().amax(1, keepdim=True) < hidden.abs().amax(1, keepdim=True)
    return torch.where(lost, hidden.to(folded.dtype), folded)


def by_channel(value: Tensor, like: Tensor) -> Tensor:
    """``[C]`` broadcastable to ``[N, C, …]``, in its dtype."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.dim() - 2))
