from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx_cases import Maker, as_ir, convnet, mlp, pictures, run

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe
from fewbit.onnxgraph.means import Means, geometry
from fewbit.onnxgraph.simplify import simplify

CODES = QSpec.parse("int4/channel/sym")  # coarse, so that the shift is large


def shifted(proto: object, batches: list[np.ndarray], name: str) -> tuple[torch.Tensor, np.ndarray]:
    """The correction, and the mean shift that rounding one layer's weight really causes."""
    model = as_ir(proto)  # type: ignore[arg-type]
    simplify(model)
    found = {layer.name: layer for layer in layers.find(model)}
    means = Means(list(found.values()))
    before = [node.name for node in model.graph]
    observe.observe(model, {}, batches, means=means)
    assert [node.name for node in model.graph] == before
    layer = found[name]
    codes = rtn.quantize_weight(layer.matrix(), CODES)
    correction = means.correction(layer, layer.matrix(), codes)
    assert correction is not None
    output = layer.node.outputs[0].name
    with observe.exposed(model, [output]):
        exact = np.concatenate([run(model, {"x": batch})[0] for batch in batches])
        import onnx_ir as ir

        layer.weight.const_value = ir.Tensor(layer.in_file(codes.dequantize()).numpy(), name=layer.weight.name)
        rounded = np.concatenate([run(model, {"x": batch})[0] for batch in batches])
    axes = tuple(axis for axis in range(exact.ndim) if axis != 1)
    return correction, (exact - rounded).mean(axes, dtype=np.float64)


@pytest.mark.parametrize("name", ["stem_node", "depth_node", "last_node", "logits_node"])
def test_the_correction_is_the_shift_of_convolutions_and_products(name: str) -> None:
    correction, shift = shifted(convnet(), [pictures(5), pictures(3, seed=1)], name)
    np.testing.assert_allclose(correction.numpy(), shift, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["first_node", "out_node"])
@pytest.mark.parametrize("opset", [13, 18])
def test_the_correction_is_the_shift_of_matrix_products(name: str, opset: int) -> None:
    batches = [np.random.default_rng(i).standard_normal((6, 32)).astype(np.float32) for i in range(2)]
    correction, shift = shifted(mlp(opset), batches, name)
    np.testing.assert_allclose(correction.numpy(), shift, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding(auto: str, stride: int) -> None:
    m = Maker()
    m.node("Conv", ["x", m.weight("w", 4, 3, 4, 4)], "y", kernel_shape=[4, 4], auto_pad=auto, strides=[stride] * 2)
    proto = m.model({"x": ["n", 3, 16, 16]}, ["y"])
    layer = layers.find(as_ir(proto))[0]
    walk = geometry(layer, (3, 16, 16))
    assert walk is not None
    x = torch.from_numpy(pictures())
    (top, bottom), (left, right) = walk.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    weight = torch.from_numpy(layer.weight.const_value.numpy().copy())
    expected = torch.nn.functional.conv2d(padded, weight, stride=stride)
    np.testing.assert_allclose(run(proto, {"x": pictures()})[0], expected.numpy(), rtol=1e-4, atol=1e-4)
