from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from onnx_cases import Maker, as_ir, convnet, mlp

from fewbit.onnxgraph import layers
from fewbit.onnxgraph.simplify import simplify


def test_the_layers_of_a_network_in_order() -> None:
    model = as_ir(convnet())
    simplify(model)
    found = layers.find(model)
    assert [layer.kind for layer in found] == ["Conv"] * 5 + ["Gemm"]
    assert [layer.groups for layer in found][:3] == [1, 1, 16]
    assert found[-1].axis == 0
    assert found[0].bias is not None


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm", "Gemm transposed"])
def test_a_matrix_and_its_place_in_the_file(kind: str) -> None:
    m = Maker()
    shape = (6, 4, 3, 3) if kind.startswith("Conv") else (6, 4)
    name = m.weight("w", *shape)
    m.node(kind.split()[0], ["x", name], "y", **({"transB": 1} if "transposed" in kind else {}))
    layer = layers.find(as_ir(m.model({"x": ["n", *([6, 8, 8] if len(shape) == 4 else [6])]}, ["y"])))[0]
    weight = torch.from_numpy(layer.weight.const_value.numpy().copy())
    matrix = layer.matrix()
    out_first = kind == "Conv" or "transposed" in kind
    torch.testing.assert_close(matrix, (weight if out_first else weight.movedim(1, 0)).flatten(1))
    torch.testing.assert_close(layer.in_file(matrix), weight)


def test_a_dead_channel_is_zero() -> None:
    m = Maker()
    m.node("MatMul", ["x", m.constant("w", np.array([[1, 1e-38], [2, -1e-40]], np.float32))], "y")
    layer = layers.find(as_ir(m.model({"x": ["n", 2]}, ["y"])))[0]
    assert layer.matrix().tolist() == [[1, 2], [0, 0]]


def test_why_a_product_is_no_layer() -> None:
    m = Maker()
    m.node("MatMul", ["x", "x"], "square")
    m.node("MatMul", ["square", m.weight("three", 2, 4, 4)], "batched")
    m.node("Gemm", ["batched", m.weight("w", 4, 4)], "scaled", alpha=2.0)
    m.node("MatMul", ["scaled", m.constant("wide", np.ones((4, 4)))], "double")
    nodes = list(as_ir(m.model({"x": [4, 4]}, ["double"])).graph)
    told = [layers.why_not(node) or "" for node in nodes]
    assert "computed" in told[0]
    assert "shape" in told[1]
    assert "alpha" in told[2]
    assert "float64" in told[3]


def test_products_of_other_domains_are_none() -> None:
    proto = mlp()
    proto.graph.node[0].domain = "com.microsoft"
    assert [layer.name for layer in layers.find(as_ir(proto))] == ["out_node"]


def test_the_bias_of_a_product_is_the_constant_added_behind_it() -> None:
    first, second = layers.find(as_ir(mlp()))
    assert (first.kind, first.bias, first.offset.name, first.output.name) == ("MatMul", None, "first.b", "biased")
    assert second.bias is second.offset is second.node.inputs[2]
    assert second.output is second.node.outputs[0]
    m = Maker()
    inputs = ["x", m.weight("w", 4, 4)]
    for name, constant in (("row", np.ones((1, 1, 4))), ("column", np.ones((4, 1))), ("double", np.ones(4))):
        constant = constant if name == "double" else constant.astype(np.float32)
        m.node("Add", [m.node("MatMul", inputs, name), m.constant(f"{name}.b", constant)], f"{name}.sum")
    m.node("Add", [m.node("MatMul", inputs, "twice"), "twice"], "y")
    found = layers.find(as_ir(m.model({"x": ["n", 4]}, ["y"])))
    assert [layer.bias_at for layer in found] == [None] * 4


def test_a_bias_that_is_no_constant_of_the_channels() -> None:
    m = Maker()
    m.node("Gemm", ["x", m.weight("w", 4, 4), "x"], "a")
    m.node("Gemm", ["x", "w", m.weight("column", 4, 1)], "b")
    m.node("Gemm", ["x", "w", m.weight("row", 1, 4)], "c")
    nodes = list(as_ir(m.model({"x": [4, 4]}, ["a", "b", "c"])).graph)
    told = [layers.why_not(node) for node in nodes]
    assert told == ["its bias is computed", "its bias is float32 of the shape [4, 1]", None]


@pytest.mark.parametrize(
    ("kind", "weight", "more", "said"),
    [
        ("Gemm", np.ones((4, 4), np.float32), {"transA": 1}, r"node 'y_node' \(it multiplies its input transposed"),
        ("Gemm", np.ones((4, 4), np.float32), {"alpha": 2.0}, r"scales its product \(alpha or beta\)"),
        ("MatMul", np.ones(4, np.float32), {}, r"its weight has the shape \[4\] and is no matrix"),
        ("MatMul", np.ones((4, 4), np.float16), {}, "its weight is float16, only float32 .*: convert the model"),
        ("Relu", None, {}, "has no Conv, ConvTranspose, MatMul or Gemm, so there is nothing to quantize"),
    ],
)
def test_a_model_without_layers_is_told_why(kind: str, weight: object, more: dict[str, float], said: str) -> None:
    m = Maker()
    inputs = ["x"] if weight is None else ["x", m.constant("w", np.asarray(weight))]
    node = as_ir(m.model({"x": [4, 4]}, [m.node(kind, inputs, "y", **more)])).graph[0]
    why = layers.why_not(node) if weight is not None else None
    assert re.search(said, layers.why_none({} if why is None else {"y_node": why}))


def test_reasons_are_told_once() -> None:
    assert layers.why_none({"a": "one", "b": "two", "c": "one"}).endswith("node 'a' and 1 more (one), node 'b' (two)")
