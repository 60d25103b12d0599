"""The checker sees each broken rule; that good models pass is tested with the writers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_cases import Maker, as_ir, mlp

from fewbit.onnxgraph import rules

from .test_static import quantized


def told(model: object, target: str = "tensorrt") -> str:
    return "\n".join(rules.violations(model, target))


def test_u8_models_break_tensorrts_rules() -> None:
    found = told(quantized("convnet", "onnxruntime"))
    assert "zero point that is not 0" in found
    assert "unsigned codes" in found
    assert "coded bias" in found


def test_a_pair_alone_and_a_float_weight() -> None:
    m = Maker()
    s, z = m.constant("s", np.array(0.1, np.float32)), m.constant("z", np.array(0, np.int8))
    y = m.node("DequantizeLinear", [m.node("QuantizeLinear", [m.node("Tanh", ["x"], "t"), s, z], "q"), s, z], "d")
    m.node("Tanh", [y], "out")
    assert "stand alone" in told(as_ir(m.model({"x": ["n", 4]}, ["out"])), "onnxruntime")
    m.nodes.pop()
    m.node("MatMul", [y, m.weight("w", 4, 4)], "out")
    assert "float weight" in told(as_ir(m.model({"x": ["n", 4]}, ["out"])), "onnxruntime")


@pytest.mark.parametrize(("change", "sentence"), [("scale", "positive constant"), ("zero", "not 0"), ("axis", "axis")])
def test_wrong_parameters(change: str, sentence: str) -> None:
    model = quantized("convnet", "tensorrt")
    assert told(model) == ""
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear" and n.name.startswith("expand.w"))
    if change == "axis":
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    else:
        value = node.inputs[1 if change == "scale" else 2]
        array = value.const_value.numpy().copy()
        array[0] = -1 if change == "scale" else 3
        value.const_value = ir.Tensor(array, name=value.name)
    assert sentence in told(model)


def test_a_residual_without_codes() -> None:
    model = quantized("convnet", "tensorrt")
    add = next(node for node in model.graph if node.op_type == "Add")
    decoded = next(v for v in add.inputs if v.producer().op_type == "DequantizeLinear")
    index = list(add.inputs).index(decoded)
    add.replace_input_with(index, decoded.producer().inputs[0].producer().inputs[0])
    assert "residual without Q/DQ" in told(model)


def test_onnx_checker_is_asked() -> None:
    proto = mlp()
    proto.graph.node[0].op_type = "NoSuchOperator"
    assert "onnx.checker" in told(as_ir(proto), "onnxruntime")
