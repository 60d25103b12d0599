"""Cross-layer equalization of an ONNX graph by its weights (arXiv 1906.04721, section 4.1): no data is needed.

Where one convolution alone feeds the next, through Relu or nothing, each channel between them is scaled so that both
weights have the same range there. Clips above 0 let no factor through; a file knows nothing of the batch norms that
would say which channels stay below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.algorithms import equalize as rule
from fewbit.onnxgraph.constants import add_constant, array_of, only_use
from fewbit.onnxgraph.layers import Layer

_SWEEPS = 40
_SETTLED = 1e-3


@dataclass
class _Numbers:
    """A layer's weight ``[out, in/groups, *kernel]`` and bias ``[out]`` in float64 while they move."""

    weight: Tensor
    bias: Tensor | None
    groups: int


def even_out(model: Any, layers: list[Layer]) -> int:
    """Equalize all pairs of convolutions of a model in place.

    Args:
        model: A simplified float model.
        layers: Its layers.

    Returns:
        How many pairs there were.
    """
    found = pairs(layers)
    numbers = {id(layer.node): _read(layer) for pair in found for layer in pair}
    for _ in range(_SWEEPS if found else 0):
        moved = [_scale(numbers[id(first.node)], numbers[id(second.node)]) for first, second in found]
        if max(moved) < _SETTLED:
            break
    for layer in {id(layer.node): layer for pair in found for layer in pair}.values():
        _write(model.graph, layer, numbers[id(layer.node)])
    return len(found)


def pairs(layers: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Convolutions of which the first alone feeds the second."""
    convs = {id(layer.node): layer for layer in layers if layer.kind == "Conv" and _own_constants(layer)}
    found = []
    for layer in convs.values():
        value = layer.node.outputs[0]
        use = only_use(value)
        while use is not None and use.op_type == "Relu" and not value.is_graph_output():
            value = use.outputs[0]
            use = only_use(value)
        reader = None if use is None or value.is_graph_output() else convs.get(id(use))
        if reader is not None and reader.node.inputs[0] is value and reader is not layer:
            found.append((layer, reader))
    return found


def _own_constants(layer: Layer) -> bool:
    """Whether the layer's weight and bias are its alone, and the bias is a constant."""
    rest = [value for value in layer.node.inputs[1:] if value is not None]
    return all(array_of(value) is not None and len(value.uses()) == 1 for value in rest)


def _read(layer: Layer) -> _Numbers:
    weight, bias = (None if value is None else array_of(value) for value in (layer.weight, layer.bias))
    assert weight is not None
    held = None if bias is None else torch.from_numpy(np.array(bias, np.float64))
    return _Numbers(torch.from_numpy(np.array(weight, np.float64)), held, layer.groups)


def _scale(first: _Numbers, second: _Numbers) -> float:
    """Scale one pair; the largest change of a factor, in powers of 2."""
    factor = rule.factors(rule.row_range(first.weight), rule.column_range(second.weight, second.groups))
    first.weight = first.weight / factor.reshape(-1, *[1] * (first.weight.dim() - 1))
    first.bias = None if first.bias is None else first.bias / factor
    second.weight = rule.scaled_columns(second.weight, second.groups, factor)
    return float(factor.log2().abs().max())


def _write(graph: Any, layer: Layer, numbers: _Numbers) -> None:
    for index, tensor in ((1, numbers.weight), (2, numbers.bias)):
        if tensor is not None:
            name = f"{layer.node.inputs[index].name}.evened"
            layer.node.replace_input_with(index, add_constant(graph, name, tensor.float().numpy()))
