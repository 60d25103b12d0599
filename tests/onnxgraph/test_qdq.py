from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_cases import Maker, as_ir, mlp, run, sqnr

from fewbit.algorithms import rtn
from fewbit.calibrate.range import Range
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, qdq
from fewbit.onnxgraph.codes import Codes

SPEC = QSpec.parse("uint8/tensor/asym")


def test_a_coded_tensor_is_the_affine_map_of_itself() -> None:
    m = Maker()
    m.node("Identity", ["x"], "y")
    model = as_ir(m.model({"x": ["n", 32]}, ["y"]))
    codes = Codes.of(Range.of(torch.tensor(-1.0), torch.tensor(2.0), SPEC), SPEC, "x")
    qdq.insert_activation(model.graph, model.graph.inputs[0], codes, lambda _: True, False)
    x = np.random.default_rng(0).normal(0, 2, (5, 32)).astype(np.float32)
    q = codes.codes(torch.from_numpy(x)).to(torch.int32)
    expected = (q - codes.zero_point).float() * np.float32(codes.scale)
    np.testing.assert_array_equal(run(model, {"x": x}, optimize=False)[0], expected.numpy())


def test_an_output_keeps_its_name_and_float_readers_their_float() -> None:
    model = as_ir(mlp())
    act = next(node for node in model.graph if node.name == "act_node").outputs[0]
    codes = Codes.of(Range.of(torch.tensor(0.0), torch.tensor(2.0), SPEC), SPEC, "act")
    out = model.graph.outputs[0]
    qdq.insert_activation(model.graph, act, codes, lambda _: False, False)
    assert all(node.op_type != "DequantizeLinear" or not node.outputs[0].uses() for node in model.graph)
    qdq.insert_activation(model.graph, out, codes, lambda _: True, True)
    assert [value.name for value in model.graph.outputs] == ["out"]


@pytest.mark.parametrize("spec", ["int4/g16/sym", "int4/g16/asym", "uint4/g32/asym", "int8/g16/sym", "int4/g20/sym"])
@pytest.mark.parametrize("layer", [0, 1])
def test_blocked_weights_are_what_their_codes_stand_for(spec: str, layer: int) -> None:
    model = as_ir(mlp(21))
    model.ir_version = 10
    found = layers.find(model)[layer]
    tensor = rtn.quantize_weight(found.matrix(), QSpec.parse(spec))
    expected = as_ir(mlp(21))
    import onnx_ir as ir

    twin = layers.find(expected)[layer]
    twin.weight.const_value = ir.Tensor(twin.in_file(tensor.dequantize()).numpy(), name=twin.weight.name)
    qdq.insert_blocks(model.graph, found, tensor, found.weight.name)
    x = {"x": np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)}
    exact = run(expected, x)[0]
    np.testing.assert_allclose(run(model, x, optimize=False)[0], exact, rtol=1e-4, atol=1e-4)
    assert sqnr(exact, run(model, x)[0]) > 35  # the runtime makes MatMulNBits of it, with int8 products


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8), st.floats(1e-9, 1))
def test_biases_fit_int32_once_scales_are_wide_enough(values: list[float], scale: float) -> None:
    bias = torch.tensor(values)
    narrow = torch.full((len(values),), 1e-9)
    wide = qdq.wide_enough(bias, scale, narrow)
    assert bool((wide >= narrow).all())
    made = qdq.bias_codes(bias, scale, wide)
    assert int(np.abs(made.codes.astype(np.int64)).max()) <= 2**30 + 256  # the rest is for the products
    np.testing.assert_allclose(
        made.codes * made.scale.astype(np.float64), bias.double().numpy(), atol=float(made.scale.max()), rtol=1e-6
    )


def test_a_bias_beyond_int32_is_refused() -> None:
    with pytest.raises(OverflowError):
        qdq.bias_codes(torch.tensor([1e4]), 1e-6, torch.tensor([1e-6]))
