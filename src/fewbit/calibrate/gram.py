"""The Gram matrix of a layer's input, ``G = E[x xᵀ]``: what a change of the layer's weight does to its output.

For a layer ``y = W x`` and a change D of its weight the mean squared change of the output is
``E‖D x‖² = tr(D G Dᵀ)``, so G is all that a layer-wise algorithm needs of the calibration data.
GPTQ (arXiv 2210.17323) calls 2 G its Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels.gram import add_products
from fewbit.kernels.pages import on_huge_pages

_TILE = 512
# Wider accumulators stay in float32: 4096² float64 values are 128 MiB, 11008² would be 924 MiB.
_DOUBLE_UP_TO = 4096


class Gram:
    """Streaming sums of ``x xᵀ``, ``|x|`` and ``x`` over rows x; mergeable, bounded by ``columns²`` values.

    Products are in float32, their sums in float64 up to 4096 columns and in float32 beyond.

    Args:
        columns: K, the width of x.
        name: The layer's name in errors.
        memory: For the sums of ``x xᵀ``, ``[K, K]`` in the dtype of :meth:`products_dtype`, with any values.

    Attributes:
        count: How many rows were seen.
    """

    def __init__(self, columns: int, name: str = "tensor", memory: Tensor | None = None) -> None:
        self.columns, self.name, self.count = columns, name, 0
        if memory is None:
            memory = on_huge_pages(torch.empty(columns, columns, dtype=self.products_dtype(columns)))
        self._products = memory.zero_()
        self._abs = torch.zeros(columns, dtype=torch.float64)
        self._sums = torch.zeros(columns, dtype=torch.float64)

    @staticmethod
    def products_dtype(columns: int) -> torch.dtype:
        """In what the products are summed."""
        return torch.float64 if columns <= _DOUBLE_UP_TO else torch.float32

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in the rows of ``x [..., K]``; the sums live on the device of the first x.

        Raises:
            FewbitError: x has another width, or holds NaN or infinity.
        """
        if x.shape[-1] != self.columns:
            raise FewbitError(f"{self.name} got an input of width {x.shape[-1]} instead of {self.columns}")
        rows = x.detach().reshape(-1, self.columns)
        if self.count == 0 and self._products.device != rows.device:
            self._products, self._abs, self._sums = (t.to(rows.device) for t in self._tensors())
        add_products(rows, self._products, self._sums, self._abs)
        if not bool(torch.isfinite(self._abs).all()):
            raise FewbitError(f"{self.name} got an input that holds NaN or infinity; look at the calibration data")
        self.count += rows.shape[0]

    def merge(self, other: Self) -> Self:
        """The statistic of both; neither changes.

        Raises:
            FewbitError: They have different widths.
        """
        if other.columns != self.columns:
            raise FewbitError(f"{self.name} has width {self.columns}, the other statistic {other.columns}")
        merged = type(self)(self.columns, self.name)
        pairs = zip(self._tensors(), other._tensors())
        merged._products, merged._abs, merged._sums = (a + b.to(a.device) for a, b in pairs)
        merged.count = self.count + other.count
        return merged

    @property
    def matrix(self) -> Tensor:
        """``G [K, K]``, the mean of ``x xᵀ``, exactly symmetric, in the accumulator's dtype.

        Raises:
            FewbitError: There was no update.
        """
        return self.total / self.count

    @property
    def total(self) -> Tensor:
        """``[K, K]``, the sum of ``x xᵀ``, exactly symmetric: the statistic's own memory and not a copy, for wide
        layers, whose matrices take half a gigabyte. Leave it as it is.

        Raises:
            FewbitError: There was no update.
        """
        self._check_seen()
        whole = self._products
        for start in range(0, self.columns, _TILE):  # no second matrix of this size
            here, behind = slice(start, start + _TILE), slice(start + _TILE, None)
            upper = whole[here, here].triu()
            whole[here, here] = upper + upper.triu(1).T
            whole[behind, here] = whole[here, behind].T
        return whole

    @property
    def mean_abs(self) -> Tensor:
        """float64 ``[K]``, the mean of ``|x|``: the activation magnitude of AWQ (arXiv 2306.00978)."""
        self._check_seen()
        return self._abs / self.count

    @property
    def mean(self) -> Tensor:
        """float64 ``[K]``, the mean of x."""
        self._check_seen()
        return self._sums / self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, sums and not means, so that adding two states adds the statistics."""
        count = torch.tensor(self.count, dtype=torch.int64)
        return {"products": self._products, "abs": self._abs, "sums": self._sums, "count": count}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str = "tensor") -> Self:
        """The statistic of a :meth:`state_dict`; the tensors are taken over, not copied."""
        gram = cls.__new__(cls)
        gram.columns, gram.name, gram.count = state["sums"].shape[0], name, int(state["count"])
        gram._products, gram._abs, gram._sums = state["products"], state["abs"], state["sums"]
        return gram

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._products, self._abs, self._sums

    def _check_seen(self) -> None:
        if self.count == 0:
            raise FewbitError(f"{self.name} saw no calibration data; pass at least one batch that reaches it")


@dataclass(frozen=True)
class Statistics:
    """What an algorithm sees of the calibration data.

    Attributes:
        gram: Of the layer's input.
        held_back: Of input that ``gram`` does not hold, for choices that must not fit the data they are judged on.
        memo: What an algorithm made of ``gram``, by its own key: layers that share an input share that work.
    """

    gram: Gram
    held_back: Gram | None = None
    memo: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """``d G dᵀ`` for each row d: the mean squared change of each output.

    Args:
        change: ``[out, K]``, the change of the weight.
        gram: ``[K, K]``.

    Returns:
        ``[out]`` in the dtype of ``gram``.
    """
    change = change.to(gram.dtype)
    return ((change @ gram) * change).sum(dim=1)
