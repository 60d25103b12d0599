"""Which tensors are integers, and which of them share one quantizer.

A tensor is an integer when a quantized layer reads it, at once or behind operations that work on integers. Operations
that only move or choose values (pooling by maximum, reshaping, borders, nearest resizing) hand their quantizer on. A
tensor that is only joined with others (concatenation) is made in the scale of the result.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from fewbit.integer.capture import Capture
from fewbit.integer.ir import BETWEEN, LAYERS, SHARING, Affine, Node


@dataclass
class Placement:
    """The decision.

    Attributes:
        found: The captured nodes, ``integer`` set on those that work on codes.
        group: The number of the quantizer of each integer value.
        wanted: What layers asked of each quantizer.
    """

    found: Capture
    group: dict[str, int] = field(default_factory=dict)
    wanted: list[list[Affine]] = field(default_factory=list)

    def missing(self) -> list[int]:
        """The quantizers that no layer asked for; their ranges have to be measured."""
        return [number for number, asked in enumerate(self.wanted) if not asked]

    def values(self, number: int) -> list[str]:
        """The values of one quantizer, in the order of the nodes."""
        return [value for value, group in self.group.items() if group == number]

    def affine(self, measured: dict[int, Affine]) -> dict[str, Affine]:
        """The quantizer of each value; where layers disagree, one that covers what all of them cover."""
        chosen = [covering(asked) if asked else measured[number] for number, asked in enumerate(self.wanted)]
        lists = {node.name for node in self.found.nodes if node.detail.get("list")}
        return {value: chosen[number] for value, number in self.group.items() if value not in lists}


def place(found: Capture) -> Placement:
    """Decide for every value of a captured graph; sets ``integer`` on the nodes."""
    _choose_nodes(found)
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    readers: dict[str, int] = {}
    for node in found.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    for node in found.nodes:
        if node.integer:
            for name in _tensors(node):
                root(name)
            if _makes_codes(node, found):
                root(node.name)
    for node in found.nodes:
        if not node.integer:
            continue
        if node.op in SHARING:
            parent[root(node.name)] = root(node.inputs[0])
        elif node.op == "concat":
            for name in node.inputs:
                if readers[name] == 1 and name not in found.outputs and name not in found.inputs:
                    parent[root(name)] = root(node.name)
    return _numbered(found, {name: root(name) for name in parent})


def _numbered(found: Capture, roots: dict[str, str]) -> Placement:
    placement = Placement(found)
    numbers: dict[str, int] = {}
    order = [*found.inputs, *(node.name for node in found.nodes)]
    for name in order:
        if name in roots:
            placement.group[name] = numbers.setdefault(roots[name], len(numbers))
    placement.wanted = [[] for _ in numbers]
    for name, asked in found.wanted.items():
        placement.wanted[placement.group[name]] += list(asked.values())
    return placement


def _choose_nodes(found: Capture) -> None:
    """Layers are integers; what is between them is where all its inputs can be and a layer comes behind it."""
    needed: set[str] = set()
    for node in reversed(found.nodes):
        if node.op in LAYERS or (node.op in BETWEEN and node.name in needed):
            needed.update(_tensors(node))
    made: set[str] = set()
    for node in found.nodes:
        if node.op in LAYERS:
            node.integer = True
        elif node.target is operator.getitem:
            node.integer = node.inputs[0] in made  # a part of a list is what the list is
        elif node.op in BETWEEN and node.name in needed:
            moves = node.op in SHARING and (node.inputs[0] in made or node.inputs[0] in found.inputs)
            node.integer = moves or all(name in made for name in _tensors(node))
        if node.integer:
            made.add(node.name)


def _tensors(node: Node) -> tuple[str, ...]:
    """The inputs that are tensors; sizes follow in the arguments of views."""
    return node.inputs[:1] if node.op in SHARING else node.inputs


def _makes_codes(node: Node, found: Capture) -> bool:
    """Whether an integer node's output is codes: not where only float operations and the user read a layer's result."""
    if node.op not in LAYERS:
        return True
    return any(node.name in _tensors(reader) for reader in found.nodes if reader.integer)


def covering(asked: list[Affine]) -> Affine:
    """One quantizer with the range of all: the single one where all are equal."""
    first = asked[0]
    if all(other == first for other in asked):
        return first
    low = min(0.0, *(a.bounds[0] for a in asked))
    high = max(0.0, *(a.bounds[1] for a in asked))
    return affine_of(low, high, first)


def affine_of(low: float, high: float, like: Affine) -> Affine:
    """The quantizer of a range, with the codes of another one; signed codes around a zero point of 0 stay so."""
    import torch

    from fewbit.numbers import affine
    from fewbit.numbers.spec import QSpec

    signed = like.qmin < 0
    narrow = signed and -like.qmin == like.qmax
    symmetry = "sym" if signed and like.zero_point == 0 else "asym"
    spec = QSpec.parse(f"{'' if signed else 'u'}int{like.bits}/tensor/{symmetry}{'/narrow' if narrow else ''}")
    scale, zero_point = affine.scale_and_zero_point(torch.tensor(low), torch.tensor(high), spec, "a tensor")
    return Affine(float(scale), 0 if zero_point is None else int(zero_point), like.qmin, like.qmax)
