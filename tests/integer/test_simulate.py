from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, network, pictures, quantized
from torch import nn

from fewbit.integer.simulate import float_conv, simulate
from fewbit.kernels.products import Geometry


@pytest.mark.parametrize("kind", KINDS)
def test_with_only_the_layers_own_quantizers_it_is_the_quantized_model(kind: type[nn.Module]) -> None:
    found, x = network(kind), pictures()
    read = {node.inputs[0] for node in found.layers()}
    affine = {name: a for name, a in found.affine.items() if name in read}
    (result,) = simulate(found.nodes, {found.inputs[0]: x}, found.constants, affine, found.outputs)
    with torch.no_grad():
        wanted = quantized(kind)(x)
    assert float((result - wanted).abs().max()) < 0.05 * float(wanted.std())


def test_everything_made_is_told_before_it_is_rounded() -> None:
    found, x = network(KINDS[0]), pictures()
    seen: dict[str, torch.Tensor] = {}
    simulate(found.nodes, {found.inputs[0]: x}, found.constants, found.affine, found.outputs, seen.__setitem__)
    assert set(seen) == {*found.inputs, *(node.name for node in found.nodes if node.op != "shape")}
    assert torch.equal(seen[found.inputs[0]], x)


def test_a_border_of_two_widths() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    walk = Geometry((3, 3), (1, 1), ((0, 2), (1, 0)), (1, 1), 1)
    wanted = torch.conv2d(torch.nn.functional.pad(x, (1, 0, 0, 2)), weight)
    assert torch.allclose(float_conv(x, weight, None, walk), wanted)
