from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import Maker, as_ir, convnet, mlp, pictures

from fewbit.algorithms import gptq, rtn
from fewbit.calibrate.gram import output_error
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe
from fewbit.onnxgraph.grams import Grams, round_groups
from fewbit.onnxgraph.simplify import simplify

SPEC = QSpec.parse("int4/channel/sym")


def collected(proto: Any, x: np.ndarray, centered: bool = False) -> tuple[Grams, dict[str, layers.Layer], Any]:
    model = as_ir(proto)
    simplify(model)
    found = {layer.name: layer for layer in layers.find(model)}
    grams = Grams(list(found.values()), set(found) if centered else ())
    observe.observe(model, {}, [x], grams=grams)
    return grams, found, model


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("name", ["stem_node", "expand_node", "last_node", "logits_node"])
def test_the_error_of_a_weight_is_that_of_the_output(name: str, centered: bool) -> None:
    grams, found, model = collected(convnet(), pictures(4), centered)
    layer = found[name]
    change = rtn.quantize_weight(layer.matrix(), SPEC).dequantize() - layer.matrix()
    statistics = grams.statistics(layer)
    assert statistics is not None
    predicted = output_error(change, statistics.gram.matrix)
    import onnx_ir as ir
    from onnx_cases import run

    with observe.exposed(model, [layer.node.outputs[0].name]):
        exact = run(model, {"x": pictures(4)})[0]
        weight = layer.in_file(layer.matrix() + change).numpy()
        layer.weight.const_value = ir.Tensor(weight, name=layer.weight.name)
        moved = run(model, {"x": pictures(4)})[0]
    axes = tuple(axis for axis in range(exact.ndim) if axis != 1)
    error = exact - moved
    if centered:  # the bias will take the mean
        error = error - error.mean(axes, keepdims=True)
    np.testing.assert_allclose(predicted.numpy(), (error**2).mean(axes), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 64])
def test_an_input_that_does_not_vary_is_no_reason_to_round_to_anything(rows: int) -> None:
    model = as_ir(mlp())
    simplify(model)
    found = layers.find(model)
    first = next(la for la in found if la.node.inputs[0] is model.graph.inputs[0])
    grams = Grams([first], centered={first.name})
    columns = first.matrix().shape[1]
    x = np.random.default_rng(3).standard_normal((1, columns)).astype(np.float32)
    grams.see({first.node.inputs[0].name: np.repeat(x, rows, axis=0)})
    statistics = grams.statistics(first)
    assert statistics is not None
    codes = gptq.quantize_weight(first.matrix(), SPEC, gptq.Options(), "w", statistics)
    nearest = rtn.quantize_weight(first.matrix(), SPEC)
    errors = [(each.dequantize() - first.matrix()).square().sum() for each in (codes, nearest)]
    assert errors[0] < 2 * errors[1]


def test_groups_have_a_matrix_each_and_rounding_by_it_is_no_worse() -> None:
    grams, found, _ = collected(convnet(), pictures(4))
    layer = found["depth_node"]
    assert grams.statistics(layer) is None
    matrices = grams.matrices(layer)
    assert matrices is not None
    assert matrices.shape == (16, 9, 9)
    codes = round_groups(layer, SPEC, grams)
    assert codes is not None

    def errors(tensor: Any) -> torch.Tensor:
        change = (tensor.dequantize() - layer.matrix()).double().unsqueeze(1)
        return ((change @ matrices) * change).sum((1, 2))

    nearest = rtn.quantize_weight(layer.matrix(), SPEC)
    assert bool((errors(codes) <= errors(nearest) * (1 + 1e-5)).all())
    assert round_groups(layer, QSpec.parse("int4/tensor/sym"), grams) is None


def test_one_dimensional_convolutions_and_large_inputs() -> None:
    m = Maker()
    m.node("Conv", ["x", m.weight("w", 4, 3, 5)], "y", kernel_shape=[5], pads=[2, 2], strides=[2])
    x = np.random.default_rng(0).standard_normal((2, 3, 20_000)).astype(np.float32)
    grams, found, _ = collected(m.model({"x": ["n", 3, "t"]}, ["y"]), x)
    statistics = grams.statistics(found["y_node"])
    assert statistics is not None
    assert 1000 < statistics.gram.count <= 2100  # an even share of the positions
    diagonal = statistics.gram.matrix.diagonal()
    np.testing.assert_allclose(diagonal.numpy(), np.ones(15), atol=0.15)
    rows, layer, _ = collected(mlp(), np.ones((3, 32), np.float32))
    first = rows.statistics(layer["first_node"])
    assert first is not None
    assert first.gram.count == 3
    assert rows.is_thin(layer["first_node"])
    assert not grams.is_thin(found["y_node"])
