"""Evening out weights leaves an ONNX network's outputs as they are, and helps where one scale serves a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import Maker, as_ir, convnet, linear_stream, pictures, run, saved

import fewbit
from fewbit.errors import FewbitError
from fewbit.onnxgraph import layers
from fewbit.onnxgraph.cross_layer import even_out, pairs
from fewbit.onnxgraph.simplify import simplify


def skewed(clip: bool = False) -> onnx.ModelProto:
    """Expand, depthwise, project, with channels whose ranges differ by powers of 10."""
    m = Maker(5)
    function = (lambda y, name: m.relu6(y, name)) if clip else (lambda y, name: m.node("Relu", [y], name))
    y = function(m.conv("x", "expand", 12, 3, 1), "expand.act")
    y = function(m.conv(y, "depth", 12, 12, 3, groups=12), "depth.act")
    m.conv(y, "out", 5, 12, 1)
    model = m.model({"x": ["batch", 3, 8, 8]}, ["out"])
    factor = 10 ** np.random.default_rng(0).standard_normal(12).astype(np.float32)
    for constant in model.graph.initializer:
        array = onnx.numpy_helper.to_array(constant).copy()
        if constant.name in ("expand.w", "expand.b"):
            array = array * factor.reshape(-1, *[1] * (array.ndim - 1))
        elif constant.name == "depth.w":
            array = array / factor.reshape(-1, 1, 1, 1)
        constant.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), constant.name))
    return model


def ready(proto: onnx.ModelProto):
    model = as_ir(proto)
    simplify(model)
    return model, layers.find(model)


def test_outputs_stay_and_ranges_even_out() -> None:
    x = pictures(4, size=8)
    wanted = run(skewed(), {"x": x})[0]
    model, found = ready(skewed())
    assert [(a.name, b.name) for a, b in pairs(found)] == [("expand_node", "depth_node"), ("depth_node", "out_node")]
    assert even_out(model, found) == 2
    np.testing.assert_allclose(run(model, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    ranges = [np.abs(layer.matrix().numpy()).max(1) for layer in found]
    np.testing.assert_allclose(ranges[0], ranges[1], rtol=1e-2)
    columns = np.abs(found[2].matrix().numpy()).max(0)
    np.testing.assert_allclose(ranges[1], columns, rtol=1e-2)


def test_clips_and_sums_end_a_pair() -> None:
    assert pairs(ready(skewed(clip=True))[1]) == []
    assert [(a.name, b.name) for a, b in pairs(ready(linear_stream())[1])] == [
        ("stem_node", "a_node"),
        ("inner_node", "b_node"),
    ]
    assert all(a.name != "project_node" for a, _ in pairs(ready(convnet())[1]))


def test_it_restores_what_one_scale_a_tensor_destroys(tmp_path: Path) -> None:
    source, x = saved(skewed(), tmp_path), pictures(32, size=8)
    wanted = run(skewed(), {"x": x})[0]
    errors = {}
    for algorithm in ("rtn", "equalize+rtn"):
        out = tmp_path / f"{algorithm}.onnx"
        result = fewbit.quantize(source, "W8A8-tensor", [x], algorithm=algorithm, output=out)
        errors[algorithm] = np.square(run(onnx.load(out), {"x": x})[0] - wanted).mean()
    assert errors["equalize+rtn"] < 0.1 * errors["rtn"]
    assert "the channels between 2 pairs of layers were evened out" in result.notes


def test_what_cannot_stand_there_is_said(tmp_path: Path) -> None:
    source = saved(skewed(), tmp_path)
    wrong = {"rotation+gptq": "only equalize", "equalize+gptq+rtn": "one algorithm", "odd": "no algorithm"}
    for name, words in wrong.items():
        with pytest.raises(FewbitError, match=words):
            fewbit.quantize(source, "W8A8", [pictures(2, size=8)], algorithm=name, output=tmp_path / "o.onnx")
