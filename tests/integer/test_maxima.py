"""A Max between each reduction and its quantizer, which changes no number."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

from fewbit.integer.maxima import keep_maxima_apart  # noqa: E402


def model(op: str, between: bool) -> onnx.ModelProto:
    """A reduction over pictures, perhaps a reshaping, and a Q/DQ pair."""
    axes = ["axes"] if op != "GlobalMaxPool" else []
    attributes = {"keepdims": 1} if axes else {}
    nodes = [helper.make_node(op, ["x", *axes], ["m"], **attributes)]
    last = "m"
    if between:
        nodes.append(helper.make_node("Flatten", ["m"], ["f"]))
        last = "f"
    nodes.append(helper.make_node("QuantizeLinear", [last, "s", "z"], ["q"]))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]))
    constants = [
        onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
        onnx.numpy_helper.from_array(np.float32(0.02), "s"),
        onnx.numpy_helper.from_array(np.uint8(9), "z"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])]
    shape = ["n", 3] if between else ["n", 3, 1, 1]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants if axes else constants[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "GlobalMaxPool"])
def test_a_max_is_put_in_and_the_numbers_stay(op: str, between: bool) -> None:
    before = model(op, between)
    changed = ir.serde.deserialize_model(before)
    assert keep_maxima_apart(changed) == 1
    assert keep_maxima_apart(changed) == 0  # what reads the reduction now is the Max
    after = ir.serde.serialize_model(changed)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node][:2] == [op, "Max"]
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    found = [ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (before, after)]
    assert np.array_equal(*found)


def test_means_and_what_no_quantizer_reads_are_left() -> None:
    changed = ir.serde.deserialize_model(model("ReduceMean", False))
    assert keep_maxima_apart(changed) == 0
    alone = model("ReduceMax", False)
    del alone.graph.node[1:]
    alone.graph.output[0].name = "m"
    assert keep_maxima_apart(ir.serde.deserialize_model(alone)) == 0
