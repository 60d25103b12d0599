"""Layers of a float network of which one alone feeds the next, with nothing between them that minds scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewbit.integer.capture import Capture
from fewbit.integer.ir import Node, Ref
from fewbit.integer.operators import clip_bounds
from fewbit.nn import kinds

_ATEN = torch.ops.aten
_CONVS = {
    getattr(getattr(_ATEN, f"conv{axes}d"), overload) for axes in (1, 2, 3) for overload in ("default", "padding")
}
#: Averages, maxima and borders of zeros scale with their input.
_THROUGH = ("avg_pool", "max_pool", "pad")
_FLATTENS = (_ATEN.reshape.default, _ATEN.flatten.using_ints)


@dataclass(frozen=True)
class Chain:
    """Two layers, one behind the other.

    Attributes:
        first: The name of the one that writes.
        second: Of the one that reads, and that alone.
        low: The lower end of the activation between them, 0 for ReLU; minus infinity where there is none.
        high: Its upper end.
        border: Whether zeros are put around what the second reads.
    """

    first: str
    second: str
    low: float
    high: float
    border: bool


def layer_of(found: Capture, node: Node) -> str:
    """The name of the layer whose weight a node of a float network multiplies by; "" for other nodes."""
    if node.target not in _CONVS and node.target != _ATEN.linear.default:
        return ""
    path = found.paths.get(node.inputs[1], "") if len(node.inputs) > 1 else ""
    return path.removesuffix(".weight") if path.endswith(".weight") else ""


def layers_of(found: Capture, model: nn.Module) -> dict[str, Node]:
    """The nodes of the convolutions and linear layers that are called once and share no weight, by name."""
    named = [(layer_of(found, node), node) for node in found.nodes]
    names = [name for name, _ in named]
    known = dict(model.named_modules())
    held = [id(p) for module in known.values() for p in module._parameters.values() if p is not None]
    return {
        name: node
        for name, node in named
        if name in known
        and names.count(name) == 1
        and kinds.kind(known[name]) in ("Linear", "Conv1d", "Conv2d", "Conv3d")
        and held.count(id(known[name]._parameters["weight"])) == 1
    }


def chains(found: Capture, model: nn.Module) -> list[Chain]:
    """All chains of a float network, in its order.

    Args:
        found: Captured from the model.
        model: With the weights.
    """
    layers = layers_of(found, model)
    by_node = {node.name: name for name, node in layers.items()}
    readers: dict[str, list[Node]] = {}
    for node in found.nodes:
        for value in dict.fromkeys(node.inputs):
            readers.setdefault(value, []).append(node)
    made = [_follow(found, model, name, node, readers, by_node) for name, node in layers.items()]
    return [chain for chain in made if chain is not None]


def _follow(
    found: Capture, model: nn.Module, name: str, node: Node, readers: dict[str, list[Node]], by_node: dict[str, str]
) -> Chain | None:
    """From one layer to the next, as long as a single operation reads each value."""
    first: Any = model.get_submodule(name)
    value, low, high, border, flat = node.name, -float("inf"), float("inf"), False, isinstance(first, nn.Linear)
    while len(readers.get(value, ())) == 1 and value not in found.outputs:
        (reader,) = readers[value]
        bounds = clip_bounds(reader)
        if reader.name in by_node:
            second: Any = model.get_submodule(by_node[reader.name])
            fits = reader.inputs[0] == value and reader.inputs.count(value) == 1 and _channels(first, second, flat)
            return Chain(name, by_node[reader.name], low, high, border or _has_border(reader)) if fits else None
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
        elif reader.op in _THROUGH:
            border = border or reader.op == "pad" or bool(any(reader.detail.get("padding", ())))
            flat = flat or (reader.op == "avg_pool" and not reader.detail.get("keep", True))
        elif reader.target in _FLATTENS and _flattens(reader):
            flat = True
        else:
            return None
        value = reader.name
    return None


def _channels(first: Any, second: Any, flat: bool) -> bool:
    """Whether the second reads as many channels as the first writes, along the same axis."""
    out = first.weight.shape[0]
    if isinstance(second, nn.Linear):
        return flat and second.in_features == out
    return not flat and second.in_channels == out


def _flattens(node: Node) -> bool:
    """Whether ``[N, C, 1, 1]`` becomes ``[N, C]``; the next layer's width tells what the other axes were."""
    if node.target == _ATEN.flatten.using_ints:
        return tuple(node.args[1:]) in ((1,), (1, -1))
    sizes: Any = node.args[1]
    return len(sizes) == 2 and isinstance(sizes[0], Ref | int)


def _has_border(node: Node) -> bool:
    """Whether a convolution puts zeros around its input."""
    if node.target == _ATEN.linear.default:
        return False
    padding: Any = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)
