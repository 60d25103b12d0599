"""Blocks of a network: stretches between two points that everything passes, a few layers each; and how one is
learned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms._reconstruction import Part
from fewbit.integer.ir import Affine, Node, Weight
from fewbit.integer.simulate import compute
from fewbit.numbers.qtensor import QTensor

_LAYERS = 3
_WINDOW = 4  # pictures

#: Stands for a size that is the number of pictures.
BATCH = object()


@dataclass(frozen=True)
class Block:
    """Nodes ``first`` to ``last`` (inclusive), which read one value from before and leave one behind."""

    first: int
    last: int
    source: str
    result: str


def blocks(found: Any, layers: int = _LAYERS) -> list[Block]:
    """The blocks of a captured graph, in order.

    A residual block is one stretch; stretches of single layers are joined to ``layers`` layers. What lies before the
    first such point or behind the last is in no block.

    Args:
        found: A captured graph or a network.
        layers: How many layers a block has at least, where it is not followed by a longer stretch.
    """
    cuts = _cuts(found)
    made: list[Block] = []
    open_block: Block | None = None
    for (before, source), (index, result) in itertools.pairwise(cuts):
        stretch = Block(before + 1, index, source, result)
        count = _count(found.nodes, stretch)
        if open_block is not None and count > 1:
            made.append(open_block)
            open_block = None
        joined = stretch if open_block is None else replace(open_block, last=index, result=result)
        if _count(found.nodes, joined) >= layers:
            made.append(joined)
            open_block = None
        else:
            open_block = joined
    if open_block is not None:
        made.append(open_block)
    return [block for block in made if _count(found.nodes, block)]


def _count(nodes: Sequence[Node], block: Block) -> int:
    return sum(bool(node.layer) for node in nodes[block.first : block.last + 1])


def _cuts(found: Any) -> list[tuple[int, str]]:
    """Points at which a single tensor is alive: (index of the node that made it, its name)."""
    last = {name: index for index, node in enumerate(found.nodes) for name in node.inputs}
    for name in found.outputs:
        last[name] = len(found.nodes)
    alive = {name for name in found.inputs if name in last}
    cuts = [(-1, next(iter(alive)))] if len(alive) == 1 else []
    sizes: set[str] = set()
    for index, node in enumerate(found.nodes):
        alive = {name for name in alive if last[name] > index}
        if node.op == "shape":
            sizes.add(node.name)
        if node.name in last:
            alive.add(node.name)
        if alive - sizes == {node.name} and not node.detail.get("list"):
            cuts.append((index, node.name))
    return cuts


class BlockForward:
    """Runs a block's nodes with other weights and biases, gradients passing every rounding unchanged.

    Args:
        nodes: Of the block.
        block: Which it is.
        affine: Quantizers of the tensors inside.
        constants: Tensors and sizes that nodes read.
    """

    def __init__(
        self, nodes: Sequence[Node], block: Block, affine: Mapping[str, Affine], constants: Mapping[str, Any]
    ) -> None:
        self.nodes, self.block, self.affine, self.constants = nodes, block, affine, constants

    def __call__(self, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The block's output in float, before it is rounded.

        Args:
            values: Weights ``[out, K]`` by layer, biases by ``layer/bias``.
            x: Codes (or float values) of the block's source.
        """
        own = self.affine.get(self.block.source)
        held: dict[str, Any] = {name: len(x) if value is BATCH else value for name, value in self.constants.items()}
        held[self.block.source] = x if own is None else own.dequantize(x)
        for node in self.nodes:
            result = compute(_weighted(node, values), held)
            affine = self.affine.get(node.name)
            if affine is not None and node.name != self.block.result:
                result = passed(result, affine)
            held[node.name] = result
        output: Tensor = held[self.block.result]
        return output


def is_batch(node: Node) -> bool:
    """Whether a size is that of the first axis."""
    return node.target == torch.ops.aten.sym_size.int and node.args[1] == 0


def passed(x: Tensor, affine: Affine) -> Tensor:
    """``x`` rounded to its codes; the gradient passes where it was not clipped."""
    inside = x.clamp(*affine.bounds)
    return inside + (affine.dequantize(affine.quantize(x.detach())) - inside.detach())


def _weighted(node: Node, values: Mapping[str, Tensor]) -> Node:
    if node.layer not in values:
        return node
    assert node.weight is not None
    weight = Weight(node.weight.codes, node.weight.scale, values[f"{node.layer}/bias"])
    detail = {**node.detail, "float weight": values[node.layer].reshape(node.weight.codes.shape)}
    return replace(node, weight=weight, detail=detail)


def part_of(
    forward: BlockForward,
    weights: Mapping[str, Tensor],
    start: Mapping[str, tuple[QTensor, Tensor]],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> Part:
    """What :func:`fewbit.algorithms.brecq.reconstruct` learns from.

    Args:
        forward: The block.
        weights: Float matrices by layer.
        start: Codes and bias by layer.
        inputs: Batches of the block's source, as the quantized network has it.
        targets: The same batches of its result in the float network.
    """
    windows = [window for batch in inputs for window in torch.split(batch, _WINDOW)]
    wanted = [window for batch in targets for window in torch.split(batch, _WINDOW)]
    codes = {name: each[0] for name, each in start.items()}
    biases = {f"{name}/bias": each[1] for name, each in start.items()}
    return Part(forward, weights, codes, windows, wanted, free=biases)
