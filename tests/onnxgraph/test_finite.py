"""Constants that are not finite are named, masks and bounds are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_cases import Maker, as_ir, branching, convnet, mlp

from fewbit.errors import FewbitError
from fewbit.onnxgraph import finite


def spoilt(proto: Any, name: str, value: float) -> Any:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return as_ir(proto)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("stem.b", r"'stem_node' \(Conv\)"),
        ("fc.b", r"'logits_node' \(Gemm\)"),
        *((f"stem.bn.{i}", r"'stem.bn_node' \(BatchNormalization\)") for i in range(4)),
    ],
)
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_the_node_and_the_tensor_are_named(name: str, node: str, value: float, what: str) -> None:
    finite.check(as_ir(convnet()))
    with pytest.raises(FewbitError, match=f"node {node}: its constant '{name}' holds {what}; mend the model"):
        finite.check(spoilt(convnet(), name, value))


def test_bounds_and_masks_may_be_infinite() -> None:
    finite.check(spoilt(convnet(), "stem.act.1", np.inf))
    finite.check(spoilt(mlp(), "first.b", -np.inf))
    for value in (np.nan, np.inf):
        with pytest.raises(FewbitError, match=r"'biased_node' \(Add\): its constant 'first.b' holds"):
            finite.check(spoilt(mlp(), "first.b", value))
    with pytest.raises(FewbitError, match=r"\(Clip\)"):
        finite.check(spoilt(convnet(), "stem.act.1", np.nan))


@pytest.mark.parametrize("kind", ["Sub", "Mul", "Div"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_arithmetic(kind: str, side: int, value: float) -> None:
    m = Maker()
    constant = m.constant("c", np.array([1, value], np.float32))
    m.node(kind, ["x", constant] if side else [constant, "x"], "y")
    model = as_ir(m.model({"x": ["n", 2]}, ["y"]))
    if kind == "Sub" and (value > 0) == bool(side):
        finite.check(model)
    else:
        with pytest.raises(FewbitError, match="holds infinity"):
            finite.check(model)


def test_constant_nodes_and_subgraphs_are_looked_into() -> None:
    m = Maker()
    m.nodes.append(
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([np.nan], np.float32)))
    )
    m.nodes.append(helper.make_node("Constant", [], ["d"], value_float=float("nan")))
    m.node("Mul", ["x", "c"], "y")
    m.node("Mul", ["x", "d"], "z")
    model = as_ir(m.model({"x": ["n", 2]}, ["y", "z"]))
    with pytest.raises(FewbitError, match=r"'y_node' \(Mul\): its constant 'c' holds NaN"):
        finite.check(model)
    model.graph.remove(next(node for node in model.graph if node.name == "y_node"))
    with pytest.raises(FewbitError, match=r"'z_node' \(Mul\): its constant 'd' holds NaN"):
        finite.check(model)
    inner = branching()
    attributes = next(node for node in inner.graph.node if node.op_type == "If").attribute
    branch = next(a.g for a in attributes if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(np.full(4, np.nan, np.float32), "inner.b"))
    branch.node[0].input.append("inner.b")
    with pytest.raises(FewbitError, match=r"\(Conv\): its constant 'inner.b' holds NaN"):
        finite.check(as_ir(inner))
