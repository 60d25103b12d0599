"""Gram matrices of layer inputs, for algorithms that weigh a weight's error by what the layer does with it.

A convolution's rows are patches of its input, one for each output position; of a large input an even share of the
positions is taken. A convolution in groups has one matrix a group.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable

import numpy as np
import torch
from torch import Tensor

from fewbit.algorithms._batched import solve_groups
from fewbit.calibrate.gram import Gram, Statistics
from fewbit.calibrate.patches import patch_rows
from fewbit.numbers.granularity import PerChannel
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.means import geometry

_ROWS = 2048  # of one piece of data; 4 K where that is more
# The least variance of an input, as a share of its mean square. An input that never varied in the data may vary later,
# and what is left of one that hardly did is what was rounded in the sums.
_LEAST_SPREAD = 1e-4


class Grams:
    """Running Gram matrices of layers; layers that look at one input in one way share theirs.

    Args:
        layers: Those of a simplified model; transposed convolutions and those with three spatial axes are left out.
        centered: Names of those whose bias will make up for the mean input, which is taken out of their matrices.
    """

    def __init__(self, layers: list[Layer], centered: Collection[str] = ()) -> None:
        self.centered = centered
        self.layers = [la for la in layers if la.kind != "ConvTranspose" and len(la.weight.const_value.shape) < 5]
        self.names = sorted({layer.node.inputs[0].name for layer in self.layers})
        self._keys = {layer.name: _view(layer) for layer in self.layers}
        self._found: dict[Hashable, _Grouped] = {}
        self._made: dict[Hashable, Statistics] = {}

    def see(self, found: dict[str, np.ndarray]) -> None:
        """Take in one piece of data."""
        for key, layer in {self._keys[layer.name]: layer for layer in self.layers}.items():
            rows = rows_of(layer, torch.from_numpy(found[layer.node.inputs[0].name]))
            if key not in self._found:
                self._found[key] = _Grouped(rows.shape[0], rows.shape[2])
            self._found[key].update(rows)

    def statistics(self, layer: Layer) -> Statistics | None:
        """Of a layer in one group; None where it saw nothing, or has several."""
        found = self._of(layer)
        if found is None or len(found.products) != 1:
            return None
        key = (self._keys[layer.name], self._centers(layer))
        if key not in self._made:  # what an algorithm makes of it once is good for all that share it
            self._made[key] = Statistics(found.grams(layer.name, self._moments(layer, found))[0])
        return self._made[key]

    def matrices(self, layer: Layer) -> Tensor | None:
        """``[groups, K, K]``, the mean of ``x xᵀ`` in each group; None where the layer saw nothing."""
        found = self._of(layer)
        return None if found is None else self._moments(layer, found) / found.count

    def is_thin(self, layer: Layer) -> bool:
        """Whether a layer saw less than two rows for each of its inputs: what is fitted to so few fits only them."""
        found = self._of(layer)
        return found is not None and found.count < 2 * found.products.shape[-1]

    def _of(self, layer: Layer) -> _Grouped | None:
        return self._found.get(self._keys.get(layer.name))

    def _centers(self, layer: Layer) -> bool:
        return layer.name in self.centered

    def _moments(self, layer: Layer, found: _Grouped) -> Tensor:
        """Sums of ``x xᵀ`` ``[groups, K, K]``, about the mean where a bias makes up for it."""
        if not self._centers(layer):
            return found.products
        about = found.products - found.sums[:, :, None] * found.sums[:, None, :] / found.count
        least = _LEAST_SPREAD * found.products.diagonal(dim1=1, dim2=2)
        variance = about.diagonal(dim1=1, dim2=2)
        variance.copy_(torch.maximum(variance, least))
        return about


def round_groups(layer: Layer, spec: QSpec, grams: Grams) -> QTensor | None:
    """Codes of a convolution in several groups, each weighed by the Gram matrix of its own input.

    Returns:
        Codes of the matrix ``[out, K]``; None where there is no data, or the spec is none of one scale a row.
    """
    matrices = grams.matrices(layer)
    if matrices is None or not spec.symmetric or spec.granularity != PerChannel(0):
        return None
    matrix = layer.matrix()
    grouped = matrix.reshape(layer.groups, -1, matrix.shape[1])
    codes, scale = solve_groups(grouped, matrices.float(), spec)
    dtype = spec.format.code_dtype
    return QTensor(
        codes.reshape(matrix.shape).to(dtype), scale.reshape(-1).contiguous(), None, spec, tuple(matrix.shape)
    )


class _Grouped:
    """Sums of ``x xᵀ``, ``|x|`` and ``x`` of several groups at once."""

    def __init__(self, groups: int, columns: int) -> None:
        self.products = torch.zeros(groups, columns, columns, dtype=Gram.products_dtype(columns))
        self.abs = torch.zeros(groups, columns, dtype=torch.float64)
        self.sums = torch.zeros(groups, columns, dtype=torch.float64)
        self.count = 0

    def update(self, rows: Tensor) -> None:
        self.products += rows.transpose(1, 2) @ rows
        self.abs += rows.abs().sum(1, dtype=torch.float64)
        self.sums += rows.sum(1, dtype=torch.float64)
        self.count += rows.shape[1]

    def grams(self, name: str, products: Tensor) -> list[Gram]:
        count = torch.tensor(self.count, dtype=torch.int64)
        parts = zip(products, self.abs, self.sums)
        return [Gram.from_state({"products": p, "abs": a, "sums": s, "count": count}, name) for p, a, s in parts]


def _view(layer: Layer) -> Hashable:
    """What tells which rows of its input a layer multiplies."""
    source = str(layer.node.inputs[0].name)
    if layer.kind != "Conv":
        return source
    attributes = [f"{name}={value.value}" for name, value in sorted(layer.node.attributes.items())]
    return source, tuple(map(int, layer.weight.const_value.shape[1:])), *attributes


def rows_of(layer: Layer, x: Tensor) -> Tensor:
    """What a layer multiplies by its weight's rows: float32 ``[groups, rows, K]``."""
    walk = geometry(layer, tuple(x.shape[1:]))
    columns = x.shape[-1] if walk is None else x.shape[1] // walk.groups * math.prod(walk.kernel)
    return patch_rows(x, walk, _most(columns))


def _most(columns: int) -> int:
    return max(_ROWS, 4 * columns)
