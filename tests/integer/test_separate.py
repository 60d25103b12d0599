"""Layers of few bits read codes of their own; what they share with sums and with each other keeps eight."""

from __future__ import annotations

import pytest
import torch
from integer_cases import Residual, network, pictures, quantized, seeded
from torch import Tensor, nn

import fewbit
from fewbit.integer import integer_network
from fewbit.integer.ir import LAYERS
from fewbit.recipe import Recipe, Rule


@pytest.mark.parametrize("recipe", ["W4A4", "W2A2", "W8A2"])
def test_sums_have_eight_bits_and_layers_what_was_asked(recipe: str) -> None:
    found = network(Residual, recipe)
    few = int(recipe[-1])
    for node in found.nodes:
        if node.op in LAYERS:
            assert found.affine[node.inputs[0]].bits == few
        if node.op == "add":
            assert {found.affine[name].bits for name in (*node.inputs, node.name)} == {8}
    rounded = [node for node in found.nodes if node.name.endswith(f"_{few}bit")]
    assert len(rounded) == 2  # of the tensors that a layer and a sum read
    assert all(node.op == "table" and node.integer for node in rounded)


def test_eight_bits_need_no_nodes_more() -> None:
    assert not [node.name for node in network(Residual).nodes if "bit" in node.name]


def test_few_bits_lose_in_integers_what_they_lose_layer_by_layer() -> None:
    def error(found: Tensor) -> float:
        return float((found - exact).square().mean())

    x = pictures(64)
    with torch.no_grad():
        exact = seeded(Residual())(x)
        alone = error(quantized(Residual, "W4A4")(x))
    deployed = fewbit.deploy(quantized(Residual, "W4A4"), pictures(), "torch")
    assert error(deployed(x)) < 1.1 * alone


class Fork(nn.Module):
    """One tensor that two layers read, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.cat([self.left(x), self.right(x)], dim=1)


def test_layers_that_trained_scales_of_their_own_keep_them() -> None:
    prepared = fewbit.prepare_qat(seeded(Fork()), "W4A4", [pictures()])
    with torch.no_grad():
        prepared.left.input_quantizer.scale.mul_(0.8)
    converted = fewbit.convert(prepared)
    found = integer_network(converted, [pictures()])
    for node in found.nodes:
        if node.layer:
            wanted = float(converted.get_submodule(node.layer).input_quantizer.scale)
            assert found.affine[node.inputs[0]].scale == wanted
    shared = integer_network(fewbit.quantize(seeded(Fork()), "W4A4", [pictures()]), [pictures()])
    assert not [node.name for node in shared.nodes if "bit" in node.name]  # one scale for both: one tensor of 4 bits


def test_a_layer_of_eight_bits_beside_one_of_four_reads_the_tensor_itself() -> None:
    recipe = Recipe("W4A4", rules=(Rule("left", scheme="W8A8"),))
    found = integer_network(fewbit.quantize(seeded(Fork()), recipe, [pictures()]), [pictures()])
    bits = {node.layer: found.affine[node.inputs[0]].bits for node in found.nodes if node.layer}
    assert bits == {"first": 4, "left": 8, "right": 4}
