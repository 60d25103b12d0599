from __future__ import annotations

import numpy as np
from onnx_cases import as_ir, mlp, run, sqnr

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import dynamic, layers, qdq


def test_dynamic_products_are_near_and_become_one_node_in_the_runtime() -> None:
    model = as_ir(mlp())
    inputs = dynamic.DynamicInputs(model.graph)
    for layer in layers.find(model):
        bias = None if layer.bias is None else __import__("torch").from_numpy(layer.bias.const_value.numpy().copy())
        codes = rtn.quantize_weight(layer.matrix(), QSpec.parse("int8/channel/sym"))
        dynamic.write_layer(model.graph, layer, codes, bias, inputs)
    qdq.drop_unused(model.graph)
    x = {"x": np.random.default_rng(1).standard_normal((9, 32)).astype(np.float32)}
    assert sqnr(run(mlp(), x)[0], run(model, x)[0]) > 32
    np.testing.assert_allclose(run(model, x)[0], run(model, x, optimize=False)[0], rtol=1e-4, atol=1e-4)
    assert [value.name for value in model.graph.outputs] == ["out"]
    assert "first.w" not in model.graph.initializers
