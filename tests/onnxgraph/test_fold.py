from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Maker, as_ir, pictures, run

from fewbit.onnxgraph.fold import fold_all


def folded(m: Maker, output: str, channels: int = 3) -> tuple[dict[str, int], list[str]]:
    """What was folded and what is left; the result stays."""
    proto = m.model({"x": ["batch", channels, 16, 16]}, [output])
    model = as_ir(proto)
    counts = fold_all(model)
    feeds = {"x": pictures(channels=channels)}
    np.testing.assert_allclose(run(proto, feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-4)
    assert model.graph.outputs[0].name == output
    return counts, [node.op_type for node in model.graph]


def per_channel(m: Maker, name: str, channels: int) -> str:
    return m.constant(name, m.random.uniform(0.5, 2, (1, channels, 1, 1)).astype(np.float32))


def test_batch_norm_behind_a_convolution() -> None:
    m = Maker()
    m.batch_norm(m.conv("x", "c", 4, 3), "y", 4)
    counts, left = folded(m, "y")
    assert counts["batch norms"] == 1
    assert left == ["Conv"]


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("one", [True, False])
def test_affine_steps(kind: str, one: bool) -> None:
    m = Maker()
    other = m.constant("o", np.array([1.7], np.float32)) if one else per_channel(m, "o", 4)
    m.node(kind, [m.conv("x", "c", 4, 3), other], "y")
    counts, left = folded(m, "y")
    assert counts["additions and multiplications"] == 1
    assert left == ["Conv"]


@pytest.mark.parametrize("kind", ["Sub", "Div"])
def test_a_constant_minus_a_convolution_is_no_affine_step_of_it(kind: str) -> None:
    m = Maker()
    m.node(kind, [per_channel(m, "o", 4), m.conv("x", "c", 4, 3)], "y")
    assert folded(m, "y")[1] == ["Conv", kind]


def test_a_chain_folds_whole_and_a_convolution_without_bias_gets_one() -> None:
    m = Maker()
    y = m.node("Conv", ["x", m.weight("w", 4, 3, 3, 3)], "c", kernel_shape=[3, 3])
    y = m.node("Add", [m.node("Mul", [y, per_channel(m, "s", 4)], "a"), per_channel(m, "t", 4)], "b")
    m.batch_norm(y, "y", 4)
    counts, left = folded(m, "y")
    assert (counts["batch norms"], counts["additions and multiplications"]) == (1, 2)
    assert left == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int) -> None:
    m = Maker()
    shape = {"kernel_shape": [2, 2], "strides": [2, 2]}
    y = m.node("ConvTranspose", ["x", m.weight("w", 4, 3, 2, 2)], "c", group=groups, **shape)
    m.batch_norm(y, "y", 3 * groups)
    assert folded(m, "y", channels=4)[1] == ["ConvTranspose"]


def test_what_others_read_too_stays() -> None:
    m = Maker()
    c = m.conv("x", "c", 4, 3)
    m.node("Add", [m.batch_norm(c, "n", 4), m.node("Relu", [c], "r")], "y")
    assert folded(m, "y")[0]["batch norms"] == 0


def test_operands_of_other_shapes_stay() -> None:
    m = Maker()
    along_width = m.constant("o", m.random.uniform(0.5, 2, (16,)).astype(np.float32))
    m.node("Mul", [m.conv("x", "c", 4, 3), along_width], "y")
    assert folded(m, "y")[1] == ["Conv", "Mul"]


@pytest.mark.parametrize(
    ("pads", "value", "mode", "goes"),
    [
        ([0, 0, 1, 2, 0, 0, 1, 0], 0.0, "constant", True),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, "constant", False),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0.0, "constant", False),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "reflect", False),
    ],
)
def test_zero_padding(pads: list[int], value: float, mode: str, goes: bool) -> None:
    m = Maker()
    inputs = ["x", m.constant("p", np.array(pads, np.int64)), m.constant("v", np.array(value, np.float32))]
    m.conv(m.node("Pad", inputs, "padded", mode=mode), "y", 4, 3 + pads[1], 3)
    assert folded(m, "y")[1] == (["Conv"] if goes else ["Pad", "Conv"])


def test_means_over_pictures_are_pooling() -> None:
    m = Maker()
    m.node("ReduceMean", [m.conv("x", "c", 4, 3)], "y", axes=[2, 3], keepdims=1)
    proto = m.model({"x": ["batch", 3, 16, 16]}, ["y"])
    from fewbit.onnxgraph.simplify import simplify

    model = as_ir(proto)
    simplify(model)
    assert [node.op_type for node in model.graph] == ["Conv", "GlobalAveragePool"]
    np.testing.assert_allclose(run(proto, {"x": pictures()})[0], run(model, {"x": pictures()})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "left"), [(["n", 6], ["Gemm"]), (["n", 5, 6], ["MatMul", "Add"])])
def test_a_bias_behind_a_matrix_product_joins_it_where_there_are_two_axes(shape: list[object], left: list[str]) -> None:
    m = Maker()
    m.node("Add", [m.weight("b", 4), m.node("MatMul", ["x", m.weight("w", 6, 4)], "product")], "y")
    proto = m.model({"x": shape}, ["y"])
    model = as_ir(proto)
    fold_all(model)
    assert [node.op_type for node in model.graph] == left
    x = np.random.default_rng(0).standard_normal([3 if d == "n" else d for d in shape]).astype(np.float32)  # type: ignore[misc]
    np.testing.assert_allclose(run(proto, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-5, atol=1e-5)
