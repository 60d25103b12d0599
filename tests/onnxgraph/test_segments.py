"""Stretches show what the whole graph shows, codes before them included, and hold no more than they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_cases import Maker, as_ir, branches, convnet, linear_stream, pictures
from quantized_cases import quantize

from fewbit.onnxgraph import observe, segments


def decoded(model: Any) -> list[str]:
    """Decoded activations and the outputs, in the graph's order."""
    ends = {value.name for value in model.graph.outputs}
    return [
        node.outputs[0].name
        for node in model.graph
        if node.outputs[0].name in ends
        or (node.op_type == "DequantizeLinear" and node.inputs[0].producer() is not None)
    ]


@pytest.mark.parametrize(("make", "size"), [(convnet, 16), (linear_stream, 8), (branches, 8)])
@pytest.mark.parametrize("piece", [1, 10**9])
def test_every_tensor_is_that_of_the_whole_graph(
    make: Callable[[], onnx.ModelProto], size: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [pictures(3, size=size), pictures(2, size=size, seed=1)]
    model = quantize(make(), batches).quantized
    names = decoded(model)
    assert len(names) >= 5
    monkeypatch.setattr(observe, "PIECE_BYTES", piece)
    wanted: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def keep(tensors: dict[str, np.ndarray], _: int) -> None:
        for name, array in tensors.items():
            wanted[name].append(array.copy())

    observe.stream(model, names, batches, keep)
    walk = segments.Walk(model, names, batches)
    most = 0
    for name in names:
        found: list[np.ndarray] = []
        walk.look(name, lambda array, found=found: found.append(array.copy()))
        most = max(most, len(walk.held))
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted[name]), err_msg=name)
    assert walk.held == {}
    assert most <= 3
    assert [value.name for value in model.graph.outputs] == [names[-1]]


def test_a_constant_that_changes_behind_is_followed() -> None:
    batches = [pictures(2)]
    model = quantize(convnet(), batches).quantized
    names = decoded(model)
    walk = segments.Walk(model, names, batches)
    walk.look(names[0], lambda _: None)
    walk.look(names[1], lambda _: None)
    layer = next(node for node in model.graph if node.op_type == "Conv")
    codes = layer.inputs[2].producer().inputs[0]
    codes.const_value = type(codes.const_value)(codes.const_value.numpy() + 1000, name=codes.name)
    found: list[np.ndarray] = []
    walk.look(names[2], lambda array: found.append(array.copy()))
    wanted: list[np.ndarray] = []
    observe.stream(model, [names[2]], batches, lambda tensors, _: wanted.append(tensors[names[2]].copy()))
    np.testing.assert_array_equal(found[0], wanted[0])


def test_a_graph_inside_a_node_is_run_as_a_whole() -> None:
    m = Maker()
    x = m.node("Relu", [m.conv("x", "first", 2, 3)], "act")
    inner = helper.make_graph(
        [helper.make_node("Neg", [x], ["negated"])], "inner", [], [helper.make_tensor_value_info("negated", 1, None)]
    )
    same = helper.make_graph(
        [helper.make_node("Identity", [x], ["kept"])], "same", [], [helper.make_tensor_value_info("kept", 1, None)]
    )
    m.constants.append(helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
    m.node("If", ["yes"], "out", then_branch=inner, else_branch=same)
    model = as_ir(m.model({"x": ["batch", 3, 16, 16]}, ["out"]))
    walk = segments.Walk(model, ["act", "out"], [pictures(2)])
    found: list[np.ndarray] = []
    for name in ("act", "out"):
        walk.look(name, lambda array: found.append(array.copy()))
    np.testing.assert_array_equal(found[1], -found[0])


def test_float_tensors_are_held_where_there_are_no_codes() -> None:
    batches = [pictures(3), pictures(2, seed=1)]
    model = as_ir(convnet())
    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    names, inputs = [node.outputs[0].name for node in layers], {node.inputs[0].name for node in layers}
    walk, bias = segments.Walk(model, names, batches, inputs), layers[1].inputs[2]
    for index, name in enumerate(names):
        found: list[np.ndarray] = []
        walk.look(name, lambda array, found=found: found.append(array.copy()))
        wanted: list[np.ndarray] = []
        observe.stream(model, [name], batches, lambda tensors, _, n=name, w=wanted: w.append(tensors[n].copy()))
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=1e-4, atol=1e-4)
        assert len(walk.held) <= 2
        if index == 1:  # what lies behind is computed anew
            bias.const_value = ir.Tensor(bias.const_value.numpy() + 1, name=bias.name)
    assert walk.held == {}
