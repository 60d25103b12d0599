"""Even out the channels of a linear stream, which changes nothing in float and spares codes.

The outputs of convolutions that only additions and convolutions read, with no function between, form a stream in
which each channel may be divided by a factor where it is written and multiplied where it is read:
``W₂(Σ W₁x) = (W₂S)(Σ S⁻¹W₁x)``. One scale for all channels wastes codes on those that are small; with factors in the
ratio of the channels' largest magnitudes all use the whole range. The idea is cross-layer equalization (Nagel et al.,
arXiv 1906.04721, section 4.1), for whole residual streams of inverted-bottleneck networks and by activations instead
of weights. Factors are powers of 2^(1/8), so that they do not hang on the last bit of a maximum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.onnxgraph.constants import add_constant, array_of
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.observe import stream

_LEAST = 2.0**-10  # a channel that is smaller still stays at this share of the largest


@dataclass(frozen=True)
class Stream:
    """Tensors that must be scaled together.

    Attributes:
        tensors: Their names.
        writers: Layers that write one.
        readers: Layers that read one.
    """

    tensors: tuple[str, ...]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]


def equalize(model: Any, layers: list[Layer], batches: Iterable[Any]) -> int:
    """Equalize all streams of a model in place.

    Args:
        model: A simplified float model.
        layers: Its layers.
        batches: A little data: the channels' largest magnitudes come from it.

    Returns:
        How many streams there were.
    """
    found = streams(model, layers)
    names = [name for one in found for name in one.tensors]
    largest: dict[str, np.ndarray] = {}

    def see(tensors: dict[str, np.ndarray], _samples: int) -> None:
        for name, array in tensors.items():
            each = np.abs(array).max(axis=(0, *range(2, array.ndim)))
            largest[name] = np.maximum(largest.get(name, 0), each)

    if found:
        stream(model, names, batches, see, stage="equalize")
    for one in found:
        _scale(model.graph, one, factors(np.max([largest[name] for name in one.tensors], axis=0)))
    return len(found)


def factors(largest: np.ndarray) -> np.ndarray:
    """What to divide each channel by, float64 ``[channels]``, the largest of them 1.

    Args:
        largest: Largest magnitude of each channel.
    """
    top = float(largest.max())
    if not np.isfinite(top) or top <= 0:
        return np.ones(len(largest))
    share = np.clip(largest.astype(np.float64) / top, _LEAST, 1)
    factor: np.ndarray = np.exp2(np.round(np.log2(share) * 8) / 8)
    return factor


def streams(model: Any, layers: list[Layer]) -> list[Stream]:
    """The streams of a model: all writers are convolutions, all readers convolutions in one group or additions
    inside."""
    by_node = {id(layer.node): layer for layer in layers if layer.kind == "Conv"}
    parent: dict[str, str] = {}
    values = {value.name: value for node in model.graph for value in node.outputs}
    for node in model.graph:
        if id(node) in by_node:
            _root(parent, node.outputs[0].name)
        elif _adds(node):
            for value in node.inputs:
                parent[_root(parent, value.name)] = _root(parent, node.outputs[0].name)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(_root(parent, name), []).append(name)
    found = [_stream([values.get(name) for name in names], by_node) for names in groups.values()]
    return [one for one in found if one is not None]


def _stream(values: list[Any], by_node: dict[int, Layer]) -> Stream | None:
    """The stream of these tensors; None where something writes or reads them that cannot be scaled."""
    names = {value.name for value in values if value is not None}
    writers: list[Layer] = []
    readers: dict[int, Layer] = {}
    for value in values:
        if value is None or value.is_graph_output() or value.producer() is None:
            return None
        writer = by_node.get(id(value.producer()))
        if writer is not None:
            writers.append(writer)
        elif not _adds(value.producer()):
            return None
        for use in value.uses():
            layer = by_node.get(id(use.node))
            if layer is not None and layer.groups == 1 and use.idx == 0:
                readers[id(use.node)] = layer
            elif not (_adds(use.node) and use.node.outputs[0].name in names):
                return None
    channels = {int(writer.weight.const_value.shape[0]) for writer in writers}
    if not readers or len(channels) != 1:
        return None
    return Stream(tuple(sorted(names)), tuple(writers), tuple(readers.values()))


def _scale(graph: Any, one: Stream, factor: np.ndarray) -> None:
    for layer in one.writers:
        for index in (1, 2) if layer.bias is not None else (1,):
            array = array_of(layer.node.inputs[index])
            assert array is not None
            _replace(graph, layer, index, array / factor.reshape(-1, *(1,) * (array.ndim - 1)))
    for layer in one.readers:
        array = array_of(layer.weight)
        assert array is not None
        _replace(graph, layer, 1, array * factor.reshape(1, -1, *(1,) * (array.ndim - 2)))


def _replace(graph: Any, layer: Layer, index: int, array: np.ndarray) -> None:
    name = layer.node.inputs[index].name
    layer.node.replace_input_with(index, add_constant(graph, f"{name}.equalized", array.astype(np.float32)))


def _adds(node: Any) -> bool:
    return bool(node.op_type == "Add" and all(array_of(value) is None for value in node.inputs))


def _root(parent: dict[str, str], name: str) -> str:
    while parent.setdefault(name, name) != name:
        name = parent[name]
    return name
