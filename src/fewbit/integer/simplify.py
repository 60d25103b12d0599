"""Fewer nodes: activations go into the operation before them, borders into convolutions, chains of functions of one
value into one table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewbit.integer.capture import Capture
from fewbit.integer.ir import Node, Ref
from fewbit.integer.operators import clip_bounds, pointwise

_CLIPPING = ("conv", "linear", "add", "mul", "avg_pool", "concat")
_INFINITY = float("inf")


def simplify(found: Capture) -> None:
    """Rewrite the nodes in place; every value that is left keeps its name and its meaning."""
    _absorb_clips(found)
    _absorb_pads(found)
    _join_pointwise(found)


def _readers(found: Capture) -> dict[str, list[Node]]:
    readers: dict[str, list[Node]] = {}
    for node in found.nodes:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    return readers


def _absorb_clips(found: Capture) -> None:
    """ReLU, ReLU6, hardtanh and clamp become the ``clip`` of the operation that alone feeds them."""
    for node in list(found.nodes):
        bounds = clip_bounds(node) if node.op == "table" else None
        if bounds is None:
            continue
        maker = next((made for made in found.nodes if made.name == node.inputs[0]), None)
        alone = len(_readers(found)[node.inputs[0]]) == 1 and node.inputs[0] not in found.outputs
        if maker is None or maker.op not in _CLIPPING or not alone:
            continue
        low, high = maker.clip or (-_INFINITY, _INFINITY)
        # min(max(x, a), b) after min(max(x, low), high), as one clip
        maker.clip = (min(max(low, bounds[0]), bounds[1]), min(max(high, bounds[0]), bounds[1]))
        maker.name = node.name  # nobody else reads the old one
        found.nodes.remove(node)


def _absorb_pads(found: Capture) -> None:
    """A border of zeros that only convolutions read becomes their padding."""
    readers = _readers(found)
    for node in list(found.nodes):
        into = readers.get(node.name, [])
        sides = node.detail.get("sides", ())
        if node.op != "pad" or node.name in found.outputs or not into:
            continue
        if not all(reader.op == "conv" and _takes(reader, sides) for reader in into):
            continue
        source = node.inputs[0]
        for reader in into:
            geometry = reader.geometry
            assert geometry is not None
            added = [(sides[2 * i], sides[2 * i + 1]) for i in range(len(sides) // 2)][::-1]
            added = [(0, 0)] * (len(geometry.padding) - len(added)) + added
            padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(geometry.padding, added))
            reader.geometry = replace(geometry, padding=padding)
            reader.inputs = (source,)
        for layer, affine in found.wanted.pop(node.name, {}).items():
            found.wanted.setdefault(source, {})[layer] = affine
        found.nodes.remove(node)


def _takes(reader: Node, sides: tuple[int, ...]) -> bool:
    return reader.geometry is not None and len(sides) <= 2 * len(reader.geometry.padding)


def _join_pointwise(found: Capture) -> None:
    """Functions of one value, however many steps they take, become one table each."""
    steps: dict[str, tuple[str, tuple[Node, ...]]] = {}  # value: its root, and the steps from there
    for node in found.nodes:
        if node.op not in ("table", "add", "mul") or not pointwise(node) or node.clip is not None:
            continue
        roots = {steps[name][0] if name in steps else name for name in node.inputs}
        if len(roots) == 1 and (node.op == "table" or all(name in steps or name in roots for name in node.inputs)):
            before = {step.name: step for name in node.inputs if name in steps for step in steps[name][1]}
            steps[node.name] = (roots.pop(), (*before.values(), node))
    readers = _readers(found)
    kept: list[Node] = []
    for node in found.nodes:
        if node.name not in steps:
            kept.append(node)
            continue
        inside = [reader for reader in readers.get(node.name, []) if reader.name in steps]
        if node.name not in found.outputs and inside and len(inside) == len(readers[node.name]):
            continue  # only steps of the same function read it
        root, program = steps[node.name]
        kept.append(Node("table", node.name, (root,), Program(program, root), (Ref(root),)))
    found.nodes[:] = kept


class Program:
    """A function of one value, as the torch functions it is made of."""

    def __init__(self, steps: tuple[Node, ...], root: str) -> None:
        self.steps, self.root = steps, root
        last = getattr(steps[-1].target, "__name__", "function")
        self.__name__ = last.split(".")[0]

    def __call__(self, x: Tensor) -> Tensor:
        """The function of each value of ``x``, same shape."""
        values: dict[str, Any] = {self.root: x}
        with torch.no_grad():
            for step in self.steps:
                values[step.name] = step.call(values)
        result: Tensor = values[self.steps[-1].name]
        return result
