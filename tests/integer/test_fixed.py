from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, network, pictures
from torch import nn

from fewbit.errors import FewbitError
from fewbit.integer.fixed import FixedPoint
from fewbit.integer.ir import LAYERS
from fewbit.integer.lower import layer_numbers
from fewbit.integer.simulate import simulate
from fewbit.kernels import reference


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_integers_within_their_range(kind: type[nn.Module]) -> None:
    found = network(kind)
    values = FixedPoint(found).values(pictures())
    for name, affine in found.affine.items():
        assert values[name].dtype == torch.int64
        assert affine.qmin <= int(values[name].min())
        assert int(values[name].max()) <= affine.qmax


@pytest.mark.parametrize("kind", KINDS)
def test_single_and_double_rounding_differ_by_one_at_most(kind: type[nn.Module]) -> None:
    found = network(kind)
    values = FixedPoint(found, "single").values(pictures())
    double = FixedPoint(found, "double")
    for node in found.nodes:
        if node.integer and node.name in found.affine:
            off = (double.step(node, values) - values[node.name]).abs()
            assert int(off.max()) <= 1


def test_a_convolution_is_the_exact_sum_rounded_once() -> None:
    found = network(KINDS[0])
    values = FixedPoint(found, "single").values(pictures())
    for node in [node for node in found.layers() if node.op == "conv"]:
        numbers, walk = layer_numbers(found, node), node.geometry
        assert walk is not None
        exact = reference.wide_conv(
            values[node.inputs[0]], numbers.codes, numbers.x.zero_point,
            stride=walk.stride, padding=walk.padding, dilation=walk.dilation, groups=walk.groups,
        ) + numbers.bias.reshape(-1, 1, 1)  # fmt: skip
        assert numbers.y is not None
        real = exact.double() * numbers.multiplier.reshape(-1, 1, 1) + numbers.y.zero_point
        off = values[node.name].double() - real.clamp(numbers.low, numbers.high)
        assert float(off.abs().max()) <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_near_the_simulation(kind: type[nn.Module]) -> None:
    found, x = network(kind), pictures()
    (wanted,) = simulate(found.nodes, {found.inputs[0]: x}, found.constants, found.affine, found.outputs)
    for rounding in ("single", "double"):
        (result,) = FixedPoint(found, rounding)(x)  # type: ignore[arg-type]
        assert float((result - wanted).abs().mean()) < 0.03 * float(wanted.std())


def test_the_last_layer_stays_an_accumulator() -> None:
    found = network(KINDS[0])
    values = FixedPoint(found).values(pictures())
    last = [node for node in found.nodes if node.op in LAYERS][-1]
    assert values[last.name].dtype == torch.int64
    assert int(values[last.name].abs().max()) > 255


def test_errors() -> None:
    with pytest.raises(FewbitError, match="1 inputs, not 0"):
        FixedPoint(network(KINDS[0]))()
    with pytest.raises(FewbitError, match="single or double"):
        FixedPoint(network(KINDS[0]), "triple")(pictures())  # type: ignore[arg-type]
