"""Does an engine compute what the network says? Layer by layer, on the codes that the engine itself had as inputs.

Engines multiply by a float scale or a fixed-point multiplier and round ties their own way, so a code may be off by one;
one code that differs changes what the layers behind it see. Each layer is therefore compared on the engine's own
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.integer.fixed import FixedPoint
from fewbit.integer.ir import Network, Node


@dataclass(frozen=True)
class Agreement:
    """One integer tensor.

    Attributes:
        name: The tensor.
        op: The operation that makes it.
        layer: The model's layer, empty for operations between layers.
        values: How many codes were compared.
        different: How many differ.
        largest: The largest difference, in codes.
    """

    name: str
    op: str
    layer: str
    values: int
    different: int
    largest: int


def agreement(network: Network, codes: Mapping[str, Tensor], reference: FixedPoint | None = None) -> list[Agreement]:
    """Compare an engine's codes with integer arithmetic, operation by operation.

    Args:
        network: The network.
        codes: Every integer tensor as an engine computed it (``engine.codes(x)``).
        reference: The arithmetic to compare with; fixed-point multipliers rounded once by default.

    Returns:
        One row for each operation whose inputs and output are all codes, in the network's order.
    """
    reference = reference or FixedPoint(network, "single")
    rows = []
    for node in network.nodes:
        if not node.integer or node.name not in codes or not all(name in codes for name in _tensors(network, node)):
            continue
        values = {name: codes[name].to(torch.int64) for name in _tensors(network, node)}
        sizes = {name: _derived(network, name, codes) for name in node.inputs if name not in network.affine}
        wanted = reference.step(node, {**values, **sizes})
        off = (codes[node.name].to(torch.int64) - wanted).abs()
        rows.append(
            Agreement(node.name, node.op, node.layer, off.numel(), int(off.count_nonzero()), int(off.max().item()))
        )
    return rows


def _tensors(network: Network, node: Node) -> list[str]:
    return [name for name in node.inputs if name in network.affine]


def _derived(network: Network, name: str, codes: Mapping[str, Tensor]) -> object:
    """A size that a reshape asks for, or the list that a split makes, from the codes at hand."""
    node = network.node(name)
    return node.call({n: codes[n] if n in codes else _derived(network, n, codes) for n in node.inputs})
