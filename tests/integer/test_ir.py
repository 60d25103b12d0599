from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from integer_cases import Residual, network

from fewbit.integer.ir import Affine, Node, Ref
from fewbit.numbers import affine as numbers

AFFINES = st.builds(
    lambda scale, zero: Affine(scale, zero, 0, 255), st.floats(2.0**-10, 8.0, width=32), st.integers(0, 255)
)


@given(AFFINES, st.lists(st.floats(-3000, 3000, width=32), min_size=1, max_size=20))
def test_codes_are_those_of_the_affine_map(made: Affine, values: list[float]) -> None:
    x = torch.tensor(values)
    wanted = numbers.quantize(
        x, "uint8/tensor/asym", scale=torch.tensor(made.scale), zero_point=torch.tensor(made.zero_point)
    )
    assert torch.equal(made.quantize(x), wanted.codes)
    assert torch.equal(made.dequantize(made.quantize(x)), wanted.dequantize())


@given(AFFINES)
def test_every_code_comes_back(made: Affine) -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert torch.equal(made.quantize(made.dequantize(codes)), codes)
    assert made.bounds == (made.scale * (0 - made.zero_point), made.scale * (255 - made.zero_point))


@given(AFFINES, st.floats(-3000, 3000))
def test_the_code_of_one_number_is_that_of_a_tensor(made: Affine, value: float) -> None:
    assert made.code(value) == int(made.quantize(torch.tensor([value], dtype=torch.float64)))
    assert made.code(float("inf")) == 255
    assert made.code(float("-inf")) == 0


def test_signed_codes_are_int8() -> None:
    assert Affine(1.0, 0, -128, 127).dtype == torch.int8
    assert Affine(1.0, 0, 0, 255).dtype == torch.uint8


def test_a_call_puts_values_in_the_place_of_references() -> None:
    node = Node("float", "y", ("a", "b"), torch.cat, ([Ref("a"), Ref("b")],), {"dim": 0})
    assert node.call({"a": torch.zeros(1), "b": torch.ones(2)}).tolist() == [0, 1, 1]


def test_a_network_knows_its_layers_and_readers() -> None:
    found = network(Residual)
    assert [node.layer for node in found.layers()] == ["stem", "depthwise", "project", "again", "head"]
    first = next(node for node in found.nodes if node.op == "add")
    assert [node.layer for node in found.readers()[first.name]] == ["again", ""]
    assert found.node(first.name) is first
