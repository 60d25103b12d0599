from __future__ import annotations

import pytest
import torch
from integer_cases import Mixed, Residual, network

from fewbit.errors import FewbitError
from fewbit.integer.ir import Affine, Network, Node, Weight
from fewbit.integer.lower import average_count, code_bounds, fit_biases, layer_numbers, table


def linear(codes: list[list[int]], scale: list[float], bias: list[float]) -> Network:
    weight = Weight(torch.tensor(codes, dtype=torch.int8), torch.tensor(scale), torch.tensor(bias))
    node = Node("linear", "y", ("x",), layer="fc", weight=weight, integer=True)
    affine = {"x": Affine(0.5, 10, 0, 255), "y": Affine(0.25, 3, 0, 255)}
    return Network(["x"], ["y"], [node], affine, {})


def test_biases_are_in_units_of_the_product() -> None:
    found = linear([[1, 2], [3, -4]], [0.5, 0.125], [1.0, -0.3])
    numbers = layer_numbers(found, found.nodes[0])
    assert numbers.step.tolist() == [0.25, 0.0625]
    assert numbers.bias.tolist() == [4, -5]
    assert numbers.multiplier.tolist() == [1.0, 0.25]
    assert (numbers.low, numbers.high) == (0, 255)


def test_a_channel_that_is_all_but_dead_gets_a_coarser_scale() -> None:
    found = linear([[127, -127], [3, -4]], [1e-9, 0.125], [5.0, -0.3])
    with pytest.raises(FewbitError, match="layer fc: sums of its products need more than 32 bits"):
        layer_numbers(found, found.nodes[0])
    fit_biases(found)
    numbers, weight = layer_numbers(found, found.nodes[0]), found.nodes[0].weight
    assert weight is not None
    assert float(numbers.bias[0] * numbers.step[0]) == pytest.approx(5.0)
    assert (weight.codes.float() * weight.scale[:, None])[0].tolist() == pytest.approx([1.27e-7, -1.27e-7], abs=1e-8)
    assert weight.codes[1].tolist() == [3, -4]


@pytest.mark.parametrize(
    ("clip", "wanted"),
    [(None, (0, 255)), ((0.0, 6.0), (3, 27)), ((0.0, float("inf")), (3, 255)), ((-float("inf"), -100.0), (0, 0))],
)
def test_bounds_of_codes(clip, wanted: tuple[int, int]) -> None:
    node = Node("add", "y", ("a", "b"), clip=clip)
    assert code_bounds(node, Affine(0.25, 3, 0, 255)) == wanted


def test_a_table_is_the_function_of_every_code() -> None:
    found = network(Mixed)
    node = next(node for node in found.nodes if node.name == "hardswish")
    x, y = found.affine[node.inputs[0]], found.affine[node.name]
    values = x.dequantize(torch.arange(256).to(torch.uint8)).double()
    assert torch.equal(table(found, node), y.quantize(torch.nn.functional.hardswish(values)))


def test_a_function_that_is_not_finite_is_refused() -> None:
    node = Node("table", "y", ("x",), torch.log)
    affine = {"x": Affine(0.5, 10, 0, 255), "y": Affine(0.25, 3, 0, 255)}
    with pytest.raises(FewbitError, match="not finite"):
        table(Network(["x"], ["y"], [node], affine, {}), node)


def test_counts_of_averages() -> None:
    found = network(Mixed)
    whole, windows = (node for node in found.nodes if node.op == "avg_pool")
    assert average_count(whole, (2, 3, 5, 7)) == 35
    assert average_count(windows, (2, 3, 5, 7)) == 16


def test_no_sum_of_a_real_layer_overflows() -> None:
    found = network(Residual)
    for node in found.layers():
        assert layer_numbers(found, node).codes.dtype == torch.int8
