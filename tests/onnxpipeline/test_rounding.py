"""Codes and biases by what the data told, for schemes whose activations stay in float or are dynamic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_cases import Maker, as_ir, branching, convnet, mlp, pictures, run, saved, sqnr

import fewbit
from fewbit import algorithms
from fewbit.algorithms import rtn
from fewbit.calibrate.gram import output_error
from fewbit.errors import FewbitError
from fewbit.onnxgraph import rules
from fewbit.onnxpipeline.quantize import Job, Settings
from fewbit.onnxpipeline.rounding import rounded
from fewbit.recipe import Recipe, Rule

PICTURES = [pictures(16, seed=s) + np.float32(0.5) for s in range(3)]
UNSEEN = pictures(32, seed=9) + np.float32(0.5)
ROWS = [np.random.default_rng(s).standard_normal((64, 32)).astype(np.float32) + np.float32(0.5) for s in range(3)]
NEEDY = [name for name in ("gptq", "adaround", "best") if name in algorithms.names()]
TARGETS = ["onnxruntime", "openvino", "tensorrt"]


def after(folder: Path, proto: Any, recipe: Any, data: Any, x: Any, **more: Any) -> tuple[Any, float]:
    """The result, and the SQNR of the file's output on ``x``."""
    out = folder / "out.onnx"
    out.unlink(missing_ok=True)
    result = fewbit.quantize(str(saved(proto, folder)), recipe, data, output=out, **more)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    feeds = x if isinstance(x, dict) else {"x": x}
    return result, sqnr(run(proto, feeds)[0], run(out, feeds)[0])


def attention(tied: bool = False) -> onnx.ModelProto:
    """Three products of one tensor ``[n, t, 32]`` with biases added behind them, and one without."""
    m = Maker(8)
    q, k, v = (
        m.node("Add", [m.node("MatMul", ["x", m.weight(f"{n}.w", 32, 32)], n), m.weight(f"{n}.b", 32)], f"{n}b")
        for n in "qkv"
    )
    y = m.node("Mul", [m.node("Sigmoid", [q], "gate"), m.node("Add", [m.node("Relu", [k], "r"), v], "sum")], "mixed")
    m.node("MatMul", [y, m.weight("o.w", 32, 16)], "y")
    return m.model({"x": ["n", "t", 32]}, ["y"])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", ["W4A16", "W3A16", "W4A16-asym"])
def test_data_makes_a_convolutional_network_better(tmp_path: Path, recipe: str, target: str) -> None:
    _, without = after(tmp_path, convnet(), recipe, None, UNSEEN, target=target)
    result, found = after(tmp_path, convnet(), recipe, PICTURES, UNSEEN, target=target)
    assert found > without + 3
    assert "the biases of 6 layers were corrected" in result.notes
    assert len(result.layers) == 6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", ["W4A16-g16", "W4A16-g32-asym", "W3A16", "W4A8-dynamic"])
def test_data_makes_products_better(tmp_path: Path, recipe: str, target: str) -> None:
    if (recipe, target) in (("W4A8-dynamic", "tensorrt"),):
        pytest.skip("TensorRT has no dynamic activations")
    unseen = np.random.default_rng(7).standard_normal((64, 32)).astype(np.float32) + np.float32(0.5)
    for proto, x, data in ((mlp(), unseen, ROWS), (attention(), unseen[None], [rows[None] for rows in ROWS])):
        _, without = after(tmp_path, proto, recipe, None, x, target=target)
        _, found = after(tmp_path, proto, recipe, data, x, target=target)
        assert found > without


@pytest.mark.parametrize("algorithm", NEEDY)
@pytest.mark.parametrize("spec", ["int4/channel/sym", "int4/g16/sym", "int4/g16/asym", "int3/channel/asym"])
@pytest.mark.parametrize("make", [convnet, mlp, attention])
def test_each_algorithm_is_no_worse_than_rounding_to_nearest(make: Any, spec: str, algorithm: str) -> None:
    recipe = (
        Recipe("W4A16", weights=spec)
        if make is not convnet
        else Recipe("W4A16", weights=spec.replace("g16", "channel"))
    )
    data = PICTURES if make is convnet else [rows[None] for rows in ROWS] if make is attention else ROWS
    job = Job(as_ir(make()), recipe, Settings(algorithm=algorithm), None, with_data=True)
    job.chosen = [plan for plan in job.prepare() if plan.scheme is not None]
    job.look(data)
    assert job.inputs is not None
    assert job.inputs.grams is not None
    for plan in job.chosen:
        assert plan.scheme is not None
        layer = job.layers[plan.name]
        matrices, matrix = job.inputs.grams.matrices(layer), layer.matrix()
        assert matrices is not None
        both = [rounded(job, plan)[0], rtn.quantize_weight(matrix, plan.scheme.weights)]
        changes = [(codes.dequantize() - matrix).reshape(layer.groups, -1, matrix.shape[1]) for codes in both]
        ours, nearest = (sum(float(output_error(c, g).sum()) for c, g in zip(change, matrices)) for change in changes)
        assert ours <= nearest * (1 + 1e-5), plan.name


def test_layers_that_share_an_input_share_its_matrix() -> None:
    job = Job(as_ir(attention()), Recipe("W4A16-g16"), Settings(), None, with_data=True)
    job.chosen = [plan for plan in job.prepare() if plan.scheme is not None]
    job.look([ROWS[0][None]])
    assert job.inputs is not None
    assert job.inputs.grams is not None
    q, k, v, o = (job.inputs.grams.statistics(job.layers[f"{name}_node"]) for name in "qkvy")
    assert q is k is v
    assert o is not q


def test_the_means_of_outputs_are_those_of_the_float_network(tmp_path: Path) -> None:
    shift = {}
    for correct in (True, False):
        out = tmp_path / f"{correct}.onnx"
        fewbit.quantize(saved(convnet(), tmp_path), "W3A16", PICTURES, output=out, bias_correction=correct)
        x = {"x": np.concatenate(PICTURES)}
        shift[correct] = float(np.abs((run(out, x)[0] - run(convnet(), x)[0]).mean(0)).mean())
    assert shift[True] < 0.1 * shift[False]


def test_transposed_and_grouped_convolutions(tmp_path: Path) -> None:
    m = Maker(3)
    x = m.node("Relu", [m.conv("x", "stem", 8, 3)], "act")
    up = [m.conv(x, "grouped", 8, 8, 3, groups=2), m.weight("up.w", 8, 3, 3, 3), m.weight("up.b", 6)]
    m.node("ConvTranspose", up, "y", group=2, strides=[2, 2], kernel_shape=[3, 3])
    proto = m.model({"x": ["n", 3, 16, 16]}, ["y"])
    _, without = after(tmp_path, proto, "W4A16", None, UNSEEN)
    result, found = after(tmp_path, proto, "W4A16", PICTURES, UNSEEN)
    assert found > without
    assert "rounded to nearest, as gptq has no inputs of such layers: y_node" in result.notes
    assert "the biases of 2 layers were corrected" in result.notes


def test_mixed_recipes_look_at_the_data_once(tmp_path: Path) -> None:
    passes = []

    def once() -> Iterator[np.ndarray]:
        passes.append(1)
        yield from PICTURES

    rules = (Rule("stem_node", scheme="W8A8"), Rule("depth_node", scheme="W8A8"))
    _, without = after(
        tmp_path, convnet(), Recipe("W4A16", rules=rules), PICTURES, UNSEEN, algorithm="rtn", bias_correction=False
    )
    result, found = after(tmp_path, convnet(), Recipe("W4A16", rules=rules), once(), UNSEEN)
    assert {layer.input for layer in result.layers} == {"float", "uint8/tensor/asym"}
    assert "the biases of 6 layers were corrected" in result.notes
    assert found > without + 3
    assert passes == [1]
    _, again = after(tmp_path, convnet(), Recipe("W4A16", rules=rules), PICTURES, UNSEEN)
    assert again == found


def test_a_graph_with_another_inside(tmp_path: Path) -> None:
    x = pictures(16, size=8)
    result, found = after(tmp_path, branching(), "W4A16", [x - np.float32(1), x + np.float32(1)], x)
    assert [layer.name for layer in result.layers] == ["a_node", "y_node"]
    assert found > 10


def test_data_is_checked_and_needed_by_name(tmp_path: Path) -> None:
    source, out = saved(convnet(), tmp_path), tmp_path / "out.onnx"
    with pytest.raises(FewbitError, match="gptq needs calibration data"):
        fewbit.quantize(source, "W4A16", output=out, algorithm="gptq")
    with pytest.raises(FewbitError, match="the calibration data is empty"):
        fewbit.quantize(source, "W4A16", [], output=out)
    assert not out.exists()


def test_a_shared_bias_and_a_computed_one_stay_what_they_are(tmp_path: Path) -> None:
    m = Maker(3)
    b = m.weight("b", 8)
    y = [m.node("Conv", ["x", m.weight(f"{n}.w", 8, 3, 1, 1), b], n) for n in "ac"]
    computed = m.node("ReduceMean", ["x"], "mean", axes=[0, 2, 3], keepdims=0)
    y.append(m.node("Conv", ["x", m.weight("d.w", 3, 3, 1, 1), computed], "d"))
    m.node("Concat", y, "y", axis=1)
    proto = m.model({"x": ["n", 3, 16, 16]}, ["y"])
    result, found = after(tmp_path, proto, "W8A16", PICTURES, UNSEEN)
    assert result.skipped == {"d_node": "its bias is computed"}
    assert found > 35
    made = ir.load(tmp_path / "out.onnx")
    values = {node.name: node.inputs[2].const_value.numpy() for node in made.graph if node.name in ("a_node", "c_node")}
    assert not np.array_equal(values["a_node"], values["c_node"])
    assert torch.isfinite(torch.tensor(found))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_added_behind_static_products_stays(tmp_path: Path, target: str) -> None:
    data = [rows[None] for rows in ROWS]
    result, found = after(tmp_path, attention(), "W8A8", data, ROWS[0][None], target=target)
    assert len(result.layers) == 4
    assert found > 30
    made = ir.load(tmp_path / "out.onnx")
    assert rules.violations(made, target) == []
    wanted = as_ir(attention()).graph.initializers
    for name in ("q.b", "k.b", "v.b"):
        np.testing.assert_array_equal(
            made.graph.initializers[name].const_value.numpy(), wanted[name].const_value.numpy()
        )


def test_mixed_products(tmp_path: Path) -> None:
    recipe = Recipe("W4A16-g16", rules=(Rule("q_node", scheme="W8A8"), Rule("y_node", scheme="W8A8-dynamic")))
    data = [rows[None] for rows in ROWS]
    result, found = after(tmp_path, attention(), recipe, data, ROWS[0][None])
    assert [layer.weights.split("/")[1] for layer in result.layers] == ["channel", "channel", "g16", "g16"]
    _, without = after(tmp_path, attention(), recipe, data, ROWS[0][None], algorithm="rtn", bias_correction=False)
    assert found > without
