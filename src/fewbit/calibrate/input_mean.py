"""The mean input of a layer as its weight sees it: one value for each column of the weight matrix ``[out, K]``.

For a linear layer that is the mean feature vector, for a convolution the mean patch. As both are linear, ``W · mean``
is the layer's mean output, and ``(W − Ŵ) · mean`` the shift that quantizing the weight causes, without running the
layer again.
"""

from __future__ import annotations

import copy
from itertools import product
from typing import Self

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry


class InputMean:
    """Streaming float64 sums ``[groups, K]`` and the count of positions; K·8 bytes a group.

    Args:
        geometry: Of a convolution, None for a linear layer.
        name: The layer's name in errors.
    """

    def __init__(self, geometry: Geometry | None, name: str = "tensor") -> None:
        self.geometry, self.name = geometry, name
        self.sums = torch.zeros(0, 0, dtype=torch.float64)
        self.count = 0

    @torch.no_grad()
    def update(self, x: Tensor, summed: int = 1) -> None:
        """Take in one input ``[..., K]``, or ``[N, C, *spatial]`` of a convolution.

        Args:
            x: The input, or the sum of several, as both the sum and the patches are linear.
            summed: How many inputs x is the sum of.
        """
        if x.numel() == 0:
            raise FewbitError(f"{self.name} got an empty input (shape {tuple(x.shape)})")
        sums, count = _rows(x) if self.geometry is None else _patches(x, self.geometry)
        self.sums = sums if self.count == 0 else self.sums + sums
        self.count += count * summed

    def merge(self, other: Self) -> Self:
        """The statistic of both; neither changes."""
        if other.count == 0 or self.count == 0:
            return copy.deepcopy(other if self.count == 0 else self)
        merged = copy.deepcopy(self)
        merged.sums, merged.count = self.sums + other.sums, self.count + other.count
        return merged

    def mean(self) -> Tensor:
        """float64 ``[groups, K]``.

        Raises:
            FewbitError: There was no update.
        """
        if self.count == 0:
            raise FewbitError(f"{self.name} saw no calibration data; pass at least one batch that reaches it")
        return self.sums / self.count


def _rows(x: Tensor) -> tuple[Tensor, int]:
    rows = x.detach().reshape(-1, x.shape[-1])
    return rows.sum(dim=0, dtype=torch.float64).unsqueeze(0), rows.shape[0]


def _patches(x: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
    """Sums over the positions that each place of the kernel meets, the border counted as zeros."""
    axes = len(geometry.kernel)
    x = x.detach() if x.dim() == axes + 2 else x.detach().unsqueeze(0)
    samples = x.shape[0]
    x = x.sum(dim=0, dtype=torch.float64)  # the places of the kernel then walk over one picture instead of all
    pads = [side for pair in reversed(geometry.padding) for side in pair]
    if any(pads):
        x = torch.nn.functional.pad(x, pads)
    spans = [d * (k - 1) + 1 for k, d in zip(geometry.kernel, geometry.dilation)]
    out = [(size - span) // s + 1 for size, span, s in zip(x.shape[1:], spans, geometry.stride)]
    sums = []
    for place in product(*(range(k) for k in geometry.kernel)):
        view = x
        for axis, (index, dilation, stride, size) in enumerate(zip(place, geometry.dilation, geometry.stride, out)):
            start = index * dilation
            view = view.narrow(1 + axis, start, (size - 1) * stride + 1)
            view = view[(slice(None),) * (1 + axis) + (slice(None, None, stride),)]
        sums.append(view.flatten(1).sum(dim=1))
    by_place = torch.stack(sums, dim=1)  # [C, places]
    return by_place.reshape(geometry.groups, -1), samples * torch.Size(out).numel()
