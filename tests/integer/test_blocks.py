from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, Residual, network, pictures
from torch import nn

from fewbit.integer.blocks import BATCH, BlockForward, blocks, passed
from fewbit.integer.ir import Affine
from fewbit.integer.simulate import dequantized, simulate


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_hold_every_layer_once_and_read_one_value(kind: type[nn.Module]) -> None:
    found = network(kind)
    made = blocks(found)
    inside = [node.layer for block in made for node in found.nodes[block.first : block.last + 1] if node.layer]
    assert inside == [node.layer for node in found.layers()]
    for block in made:
        nodes = found.nodes[block.first : block.last + 1]
        names = {node.name for node in nodes} | {block.source}
        assert nodes[-1].name == block.result
        assert all(name in names for node in nodes if node.op != "shape" for name in node.inputs[:1])


def test_a_residual_block_is_one() -> None:
    found = network(Residual)
    assert [(block.source, block.result) for block in blocks(found)] == [
        ("x", "relu6"), ("relu6", "relu"), ("relu", "linear"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_computes_what_the_simulation_does(kind: type[nn.Module]) -> None:
    found, x = network(kind), pictures()
    seen: dict[str, torch.Tensor] = {}
    simulate(found.nodes, {found.inputs[0]: x}, found.constants, found.affine, found.outputs, seen.__setitem__)
    for block in blocks(found):
        nodes = found.nodes[block.first : block.last + 1]
        values = {node.layer: dequantized(node).flatten(1) for node in nodes if node.layer}
        values |= {f"{node.layer}/bias": node.weight.bias for node in nodes if node.layer and node.weight is not None}
        sizes = {node.name: BATCH for node in found.nodes if node.op == "shape"}
        own = found.affine.get(block.source)
        source = seen[block.source] if own is None else own.quantize(seen[block.source])
        result = BlockForward(nodes, block, found.affine, sizes)(values, source)
        assert torch.allclose(result, seen[block.result], atol=1e-5)


def test_gradients_pass_a_rounding_where_it_does_not_clip() -> None:
    x = torch.tensor([-9.0, 0.03, 0.31, 99.0], requires_grad=True)
    y = passed(x, Affine(0.1, 10, 0, 255))
    y.sum().backward()
    assert torch.allclose(y.detach(), torch.tensor([-1.0, 0.0, 0.3, 24.5]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
