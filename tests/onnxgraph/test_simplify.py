from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_cases import Maker, as_ir, branches, convnet, linear_stream, mlp, pictures, run

from fewbit.onnxgraph.simplify import simplify


@pytest.mark.parametrize("make", [convnet, linear_stream, branches])
def test_results_stay(make: object) -> None:
    proto = make()  # type: ignore[operator]
    model = as_ir(proto)
    simplify(model)
    size = proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    feeds = {"x": pictures(size=size)}
    np.testing.assert_allclose(run(proto, feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-4)


def test_batch_norms_are_gone_and_told() -> None:
    model = as_ir(convnet())
    assert simplify(model) == ["folded into the layers before them: 1 batch norms"]
    assert Counter(node.op_type for node in model.graph)["BatchNormalization"] == 0
    assert {node.name for node in model.graph if node.op_type == "Conv"} >= {"stem_node", "expand_node"}


def test_paddings_that_an_exporter_computes_are_folded() -> None:
    m = Maker()
    zeros = m.node(
        "ConstantOfShape",
        [m.constant("four", np.array([4], np.int64))],
        "zeros",
        value=helper.make_tensor("v", TensorProto.INT64, [1], [0]),
    )
    pads = m.node("Concat", [zeros, m.constant("ends", np.array([0, 0, 1, 1], np.int64))], "pads", axis=0)
    m.conv(m.node("Pad", ["x", pads], "padded"), "out", 4, 3, 3)
    proto = m.model({"x": ["batch", 3, 16, 16]}, ["out"])
    model = as_ir(proto)
    simplify(model)
    assert [node.op_type for node in model.graph] == ["Conv"]
    feeds = {"x": pictures()}
    np.testing.assert_allclose(run(proto, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def test_nodes_without_a_name_get_their_outputs() -> None:
    proto = mlp()
    for node in proto.graph.node:
        node.ClearField("name")
    model = as_ir(proto)
    simplify(model)
    assert "first" in {node.name for node in model.graph}


def test_constants_listed_as_inputs_are_constants() -> None:
    proto = mlp()
    proto.graph.input.append(helper.make_tensor_value_info("first.w", TensorProto.FLOAT, [32, 48]))
    model = as_ir(proto)
    simplify(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
