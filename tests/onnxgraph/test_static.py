"""Whole static graphs: the integers that ONNX Runtime computes are those of the graph as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import Maker, as_ir, branches, convnet, linear_stream, mlp, pictures, run, sqnr

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe, placement, ranges, rules, static, targets
from fewbit.onnxgraph.session import Runner
from fewbit.onnxgraph.simplify import simplify

NETS = {"convnet": convnet, "branches": branches, "stream": linear_stream, "mlp": mlp}


def inputs(name: str, seed: int = 7) -> np.ndarray:
    if name == "mlp":
        return np.random.default_rng(seed).standard_normal((8, 32)).astype(np.float32)
    return pictures(8, size=16 if name == "convnet" else 8, seed=seed)


def quantized(name: str, target_name: str, weights: str = "int8/channel/sym") -> Any:
    model = as_ir(NETS[name]())
    simplify(model)
    target = targets.get(target_name)
    found = layers.find(model)
    places = placement.place(model, found, target)
    statistics = ranges.new_statistics(places, "minmax", {})
    observe.observe(model, statistics, [inputs(name)])
    codes = ranges.solve(ranges.merged(places, statistics), "minmax", {}, QSpec.parse(target.activations))
    matrices = {layer.name: rtn.quantize_weight(layer.matrix(), QSpec.parse(weights)) for layer in found}
    biases = {la.name: torch.from_numpy(la.bias.const_value.numpy().copy()) for la in found if la.bias is not None}
    static.write_static(model, places, target, codes, matrices, biases)
    return model


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("name", NETS)
def test_every_rule_holds_and_the_output_is_near(name: str, target: str) -> None:
    model = quantized(name, target)
    assert rules.violations(model, target) == []
    x = {"x": inputs(name)}
    floats = run(NETS[name](), x)[0]
    assert sqnr(floats, run(model, x, optimize=False)[0]) > 25
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == [v.name for v in NETS[name]().graph.output]


@pytest.mark.parametrize("name", NETS)
def test_the_optimized_graph_computes_the_same_integers(name: str) -> None:
    model, x = quantized(name, "onnxruntime"), {"x": inputs(name, seed=3)}
    as_written, fused = run(model, x, optimize=False)[0], run(model, x)[0]
    step = float(np.abs(fused).max()) / 255
    assert np.abs(as_written - fused).max() < 2.5 * step


@pytest.mark.parametrize("name", ["convnet", "stream"])
def test_nothing_is_left_in_float_between_input_and_output(name: str, tmp_path: Path) -> None:
    model = quantized(name, "onnxruntime")
    runner = Runner(model, threads=1, profile=str(tmp_path / "profile"))
    runner.run({"x": inputs(name)})
    events = json.loads(Path(runner.session.end_profiling()).read_text(encoding="utf-8"))
    kinds = [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Relu", "Clip", "Add"} & set(kinds)
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") <= 1


def test_narrow_weights_lie_in_bytes() -> None:
    model = quantized("mlp", "onnxruntime", "int4/channel/sym")
    codes = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".w_quantized")]
    assert codes
    assert all(c.dtype == np.int8 and c.min() >= -8 and c.max() <= 7 for c in codes)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_dead_channels_bias_leaves_room_for_its_products(sign: int) -> None:
    m = Maker()
    weight = np.random.default_rng(0).standard_normal((4, 8, 3, 3)).astype(np.float32)
    weight[2] = sign * 1e-6
    m.node("Conv", ["x", m.constant("w", weight), m.constant("b", np.full(4, sign * 1.5, np.float32))], "y")
    proto = m.model({"x": ["n", 8, 8, 8]}, ["y"])
    model, x = as_ir(proto), {"x": np.abs(pictures(4, 8, 8))}
    floats = run(model, x)[0]
    (layer,) = layers.find(model)
    target = targets.get("onnxruntime")
    places = placement.place(model, [layer], target)
    statistics = ranges.new_statistics(places, "minmax", {})
    observe.observe(model, statistics, [x])
    codes = ranges.solve(ranges.merged(places, statistics), "minmax", {}, QSpec.parse(target.activations))
    tensor = rtn.quantize_weight(layer.matrix(), QSpec.parse("int8/channel/sym"))
    bias = torch.from_numpy(layer.bias.const_value.numpy().copy())
    static.write_static(model, places, target, codes, {layer.name: tensor}, {layer.name: bias})
    assert sqnr(floats[:, 2], run(model, x)[0][:, 2]) > 30
