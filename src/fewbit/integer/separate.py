"""Few bits for layers, eight for what lies between them.

A layer with inputs of 4 or 2 bits reads codes of a tensor that a sum or a pooling may read, too, and that another layer
may read by a scale of its own, as training finds one for each. One quantizer for all of them would make the sum as
coarse as the layer's input, or change what was trained. So the tensor itself gets 8 bits, and each quantizer of fewer
bits that is asked of it becomes a node behind it: a table from code to code.
"""

from __future__ import annotations

import torch

from fewbit.integer.capture import Capture
from fewbit.integer.ir import LAYERS, Affine, Node, Ref
from fewbit.integer.simplify import Program


def separate(found: Capture) -> None:
    """Add the nodes, in place, where a tensor is asked for in fewer than 8 bits and that is not all that is asked."""
    for value, asked in list(found.wanted.items()):
        readers = [node for node in found.nodes if value in node.inputs]
        kinds = list(dict.fromkeys(asked.values()))
        alone = len(kinds) == 1 and value not in found.outputs and all(node.op in LAYERS for node in readers)
        if alone or all(affine.bits == 8 for affine in kinds):
            continue
        for number, affine in enumerate(kinds):
            if affine.bits < 8:
                layers = [node for node in readers if asked.get(node.layer) == affine]
                _behind(found, value, f"{value}_{affine.bits}bit{number or ''}", affine, layers)
        if not found.wanted[value]:
            del found.wanted[value]


def _behind(found: Capture, value: str, name: str, affine: Affine, layers: list[Node]) -> None:
    """Let ``layers`` read ``value`` through a node that only rounds to ``affine``."""
    same = Node("table", name, (value,), torch.ops.aten.clone.default, (Ref(value),))
    node = Node("table", name, (value,), Program((same,), value), (Ref(value),))
    found.nodes.insert(min(found.nodes.index(layer) for layer in layers), node)
    for layer in layers:
        layer.inputs = (name,)
        found.wanted.setdefault(name, {})[layer.layer] = affine
        del found.wanted[value][layer.layer]
