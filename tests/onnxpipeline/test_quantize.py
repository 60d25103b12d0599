"""From file to file, for every scheme and target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_cases import Maker, branching, convnet, looping, mlp, pictures, run, saved, sqnr

import fewbit
from fewbit.errors import FewbitError
from fewbit.onnxgraph import rules
from fewbit.onnxgraph.session import Runner
from fewbit.onnxpipeline.quantize import Settings, quantize_file
from fewbit.recipe import Recipe, Rule

X = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)


def quantized(folder: Path, proto: Any, recipe: Any, data: Any = None, **more: Any) -> tuple[Any, Path]:
    out = folder / "out.onnx"
    result = fewbit.quantize(str(saved(proto, folder)), recipe, data, output=out, **more)
    assert result.output == out
    return result, out


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("calibrator", ["minmax", "mse", "entropy", "percentile", "outlier", "best"])
def test_static_models_pass_the_rules_of_their_target(tmp_path: Path, target: str, calibrator: str) -> None:
    batches = [pictures(8), pictures(8, seed=1)]
    result, out = quantized(tmp_path, convnet(12), "W8A8", batches, target=target, calibrator=calibrator)
    assert rules.violations(ir.load(out), target) == []
    assert len(result.layers) == 6
    assert "converted from opset 12 to 13" in result.notes
    floats, codes = run(convnet(), {"x": pictures(4)})[0], run(out, {"x": pictures(4)}, optimize=False)[0]
    assert sqnr(floats, codes) > (5 if calibrator == "entropy" else 15)  # entropy clips much of so little data


def test_names_metadata_and_dynamic_axes_stay(tmp_path: Path) -> None:
    _, out = quantized(tmp_path, convnet(), "W8A8", [pictures()])
    made = onnx.load(out)
    assert made.metadata_props[0].key == "key"
    assert made.producer_name == "a test"
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert run(out, {"x": pictures(7)})[0].shape == (7, 5)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        ("W8A8-dynamic", 30),
        ("W4A16-g16", 12),
        ("W8A16", 35),
        ("W4A16-g32-asym", 10),
        ("W4A8-dynamic", 8),
        ("W3A16-g16", 6),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_schemes_without_data(tmp_path: Path, recipe: str, least: float, target: str) -> None:
    result, out = quantized(tmp_path, mlp(), recipe, target=target)
    assert len(result.layers) == 2
    assert sqnr(run(mlp(), {"x": X})[0], run(out, {"x": X})[0]) > least


@pytest.mark.parametrize(
    "recipe", ["W2A16-g16", "W3A16-g16", "W4A16-g32", "W5A16-g32", "W3A16", "W4A16-g32-asym", "W8A16"]
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("data", [None, [X]])
def test_the_bytes_told_of_layers_are_those_of_the_file(tmp_path: Path, recipe: str, target: str, data: Any) -> None:
    result, out = quantized(tmp_path, mlp(), recipe, data, target=target)
    assert sum(layer.bytes_after for layer in result.layers) == held(out)


@pytest.mark.parametrize("recipe", ["W8A8", "W4A8", "W8A8-dynamic", "W4A8-dynamic"])
def test_those_of_layers_with_quantized_inputs_as_well(tmp_path: Path, recipe: str) -> None:
    result, out = quantized(tmp_path, mlp(), recipe, [X])
    assert sum(layer.bytes_after for layer in result.layers) == held(out)


def held(path: Path) -> int:
    """Bytes of a file's constants without the scales and zero points of activations."""
    graph = ir.load(path).graph
    activations = {v.name for node in graph if node.op_type == "QuantizeLinear" for v in node.inputs[1:]}
    return sum(value.const_value.nbytes for name, value in graph.initializers.items() if name not in activations)


def test_blocks_of_int4_are_opset_21_and_small(tmp_path: Path) -> None:
    result, out = quantized(tmp_path, mlp(), "W4A16-g16", target="tensorrt")
    made = onnx.load(out)
    assert made.opset_import[0].version == 21
    nodes = [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    assert [a.i for node in nodes for a in node.attribute if a.name == "block_size"] == [16, 16]
    assert {t.data_type for t in made.graph.initializer} >= {onnx.TensorProto.INT4}
    assert result.bytes_after < result.bytes_before


def test_rules_by_name_and_type(tmp_path: Path) -> None:
    recipe = Recipe("W8A8", rules=(Rule("depth_*", skip=True), Rule(types=("Gemm",), skip=True)))
    result, out = quantized(tmp_path, convnet(), recipe, [pictures()])
    assert set(result.skipped) == {"depth_node", "logits_node"}
    floats = {
        node.name
        for node in ir.load(out).graph
        if node.op_type in ("Conv", "Gemm") and node.inputs[1].producer() is None
    }
    assert floats == {"depth_node", "logits_node"}


def test_mixed_recipes(tmp_path: Path) -> None:
    recipe = Recipe("W8A16", rules=(Rule("first_node", scheme="W8A8"),))
    result, out = quantized(tmp_path, mlp(), recipe, [X])
    assert {layer.input for layer in result.layers} == {"float", "uint8/tensor/asym"}
    assert sqnr(run(mlp(), {"x": X})[0], run(out, {"x": X})[0]) > 30


def test_bias_correction_takes_the_mean_shift_away(tmp_path: Path) -> None:
    batches = [pictures(16, seed=s) for s in range(3)]
    recipe = Recipe("W8A8", weights="int3/channel/sym")
    floats = run(convnet(), {"x": batches[0]})[0]
    shift = {}
    for correct in (True, False):
        out = tmp_path / f"{correct}.onnx"
        fewbit.quantize(saved(convnet(), tmp_path), recipe, batches, output=out, bias_correction=correct)
        shift[correct] = float(np.abs((run(out, {"x": batches[0]})[0] - floats).mean(0)).mean())
    assert shift[True] < 0.6 * shift[False]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    _, out = quantized(tmp_path, convnet(), "W8A8", [pictures()])
    first = out.read_bytes()
    out.unlink()
    quantized(tmp_path, convnet(), "W8A8", [pictures()])
    assert out.read_bytes() == first


def failing(name: str) -> Any:
    proto = convnet()
    if name == "nan":
        tensor = next(t for t in proto.graph.initializer if t.name == "expand.w")
        array = np.frombuffer(tensor.raw_data, np.float32).copy()
        array[3] = np.nan
        tensor.raw_data = array.tobytes()
    return proto


@pytest.mark.parametrize(
    ("name", "recipe", "data", "told"),
    [
        ("", "W8A8", None, "needs? calibration data"),
        ("", "W8A8", [], "is empty"),
        ("nan", "W8A8", [pictures()], "expand_node holds NaN"),
        ("", "W8A8", [np.full((1, 3, 16, 16), np.nan, np.float32)], "holds NaN"),
        ("", "W8A8", [pictures(channels=2)], "failed on the data"),
        ("", "W8A4", [pictures()], "8-bit activations"),
        ("", "W4A8-g16", [pictures()], "stem_node: weights beside coded activations"),
        ("", "W8A8-dynamic", None, None),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence_and_nothing_is_left(
    tmp_path: Path, name: str, recipe: str, data: Any, told: str | None
) -> None:
    if told is None:
        return
    with pytest.raises(FewbitError, match=told) as error:
        quantized(tmp_path, failing(name), recipe, data)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_quantized_models_and_existing_outputs_are_refused(tmp_path: Path) -> None:
    _, out = quantized(tmp_path, convnet(), "W8A8", [pictures()])
    with pytest.raises(FewbitError, match="exists already"):
        fewbit.quantize(saved(convnet(), tmp_path), "W8A8", [pictures()], output=out)
    with pytest.raises(FewbitError, match="quantized already"):
        fewbit.quantize(out, "W8A8", [pictures()], output=tmp_path / "twice.onnx")
    with pytest.raises(FewbitError, match="to a file"):
        fewbit.quantize(saved(convnet(), tmp_path), "W8A8", [pictures()])


def test_algorithms_that_look_at_inputs_lower_the_error(tmp_path: Path) -> None:
    batches = [pictures(16, seed=s) for s in range(2)]
    recipe = Recipe("W8A8", weights="int4/channel/sym")
    floats = run(convnet(), {"x": batches[0]})[0]
    found = {}
    for name in ("rtn", "gptq"):
        out = tmp_path / f"{name}.onnx"
        fewbit.quantize(saved(convnet(), tmp_path), recipe, batches, output=out, algorithm=name, calibrator="minmax")
        found[name] = sqnr(floats, run(out, {"x": batches[0]})[0])
    assert found["gptq"] > found["rtn"] + 1


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("make", [branching, looping])
def test_subgraphs_stay_as_they_are_and_layers_around_them_are_quantized(
    tmp_path: Path, make: Any, target: str
) -> None:
    x = pictures(16, size=8)
    result, out = quantized(tmp_path, make(), "W8A8", [x - np.float32(1), x + np.float32(1)], target=target)
    assert [layer.name for layer in result.layers] == ["a_node", "y_node"]
    inner = [name for name, why in result.skipped.items() if "inside an If" in why]
    assert inner == (["then/a_node"] if make is branching else [])
    assert rules.violations(ir.load(out), target) == []
    for shift in (-1, 1):  # each branch
        feeds = {"x": x + np.float32(shift)}
        assert sqnr(run(make(), feeds)[0], run(out, feeds, optimize=False)[0]) > 25


def test_what_is_read_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(mlp(), source, save_as_external_data=True, location="w.onnx", size_threshold=0, convert_attribute=False)
    (tmp_path / "link.onnx").symlink_to(source)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for output in ("model.onnx", "link.onnx", "w.onnx"):
        with pytest.raises(FewbitError, match=r"the output .* is the source itself"):
            quantize_file(source, "W8A16", None, tmp_path / output, Settings(overwrite=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_what_a_float_layer_makes_is_added_behind_its_relu(tmp_path: Path, kind: str) -> None:
    m = Maker(4)
    weight = m.weight("stem.w", *((8, 3) if kind == "Conv" else (3, 8)), 3, 3)
    y = m.node("Relu", [m.node(kind, ["x", weight, m.weight("stem.b", 8)], "stem")], "act")
    m.node("Add", [y, m.conv(y, "side", 8, 8)], "y")
    proto = m.model({"x": ["n", 3, 8, 8]}, ["y"])
    recipe = Recipe("W8A8", rules=(Rule("stem_node", skip=True),))
    x = pictures(8, size=8)
    _, out = quantized(tmp_path, proto, recipe, [x])
    assert sqnr(run(proto, {"x": x})[0], run(out, {"x": x}, optimize=False)[0]) > 30


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolutions_in_groups(tmp_path: Path, groups: int, target: str) -> None:
    m = Maker(3)
    inputs = [m.conv("x", "stem", 8, 3), m.weight("up.w", 8, 3, 3, 3), m.weight("up.b", 3 * groups)]
    y = m.node("ConvTranspose", inputs, "up", group=groups, strides=[2, 2], kernel_shape=[3, 3])
    m.node("Relu", [m.batch_norm(y, "bn", 3 * groups)], "y")
    proto = m.model({"x": ["n", 3, 8, 8]}, ["y"])
    huge = next(t for t in proto.graph.initializer if t.name == "up.b")
    huge.CopyFrom(onnx.numpy_helper.from_array(np.linspace(-1e6, 1e6, 3 * groups, dtype=np.float32), "up.b"))
    for made in (proto, m.model({"x": ["n", 3, 8, 8]}, ["y"])):  # a bias that widens the scales, and an ordinary one
        x = pictures(8, size=8)
        (tmp_path / "out.onnx").unlink(missing_ok=True)
        result, out = quantized(tmp_path, made, "W8A8", [x], target=target)
        assert [layer.kind for layer in result.layers] == ["Conv", "ConvTranspose"]
        assert rules.violations(ir.load(out), target) == []
        assert sqnr(run(made, {"x": x})[0], run(out, {"x": x}, optimize=False)[0]) > 30


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("recipe", ["W4A16-g32", "W4A16-g32-asym"])
def test_inputs_that_are_no_multiple_of_the_group(tmp_path: Path, recipe: str, target: str) -> None:
    result, out = quantized(tmp_path, mlp(), recipe, target=target)  # 32 inputs, then 48
    blocks = {
        node.input[0]: attribute.i
        for node in onnx.load(out).graph.node
        for attribute in node.attribute
        if attribute.name == "block_size" and node.op_type == "DequantizeLinear"
    }
    told = "out_node" in " ".join(result.notes)
    assert (blocks, told) == (({}, False) if target == "onnxruntime" else ({"first.w_quantized": 32}, True))
    assert [layer.weights for layer in result.layers][1].split("/")[1] == ("g32" if not told else "channel")
    model = ir.to_proto(ir.load(out))
    onnx.checker.check_model(model, full_check=True)
    assert sqnr(run(mlp(), {"x": X})[0], run(out, {"x": X})[0]) > 10


def test_a_target_that_computes_the_layers_is_named(tmp_path: Path) -> None:
    m = Maker()
    m.node("ConvTranspose", ["x", m.weight("w", 3, 4, 2, 2)], "y")
    source = saved(m.model({"x": ["n", 3, 8, 8]}, ["y"]), tmp_path)
    with pytest.raises(FewbitError, match=r"\(ConvTranspose\) on integers; --target openvino or tensorrt does"):
        fewbit.quantize(source, "W8A8", [pictures(2, size=8)], output=tmp_path / "out.onnx")


def test_a_weight_on_the_left_is_told(tmp_path: Path) -> None:
    m = Maker()
    y = m.node("MatMul", [m.weight("left.w", 6, 32), m.node("Transpose", ["x"], "t")], "left")
    m.node("MatMul", [m.node("Transpose", [y], "back"), m.weight("right.w", 6, 5)], "out")
    result, _ = quantized(tmp_path, m.model({"x": ["n", 32]}, ["out"]), "W8A16")
    assert result.skipped == {"left_node": "its weight is on the left side of the product"}


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("brecq", "brecq learns block by block in torch, and is not there for ONNX files: take gptq, adaround or best"),
        ("autoround", "autoround learns block by block"),
        ("smoothquant", "smoothquant moves scales between the layers of a torch model"),
        ("rotation+gptq", "only equalize can stand before a"),
        ("equalize+brecq", "brecq learns block by block"),
        ("gptqq", "no algorithm is called 'gptqq'"),
    ],
)
def test_a_name_never_stands_for_another_algorithm(tmp_path: Path, algorithm: str, said: str) -> None:
    with pytest.raises(FewbitError, match=said):
        quantized(tmp_path, convnet(), "W4A8", [pictures()], algorithm=algorithm)
    assert not (tmp_path / "out.onnx").exists()


def test_what_data_does_nothing_for_is_told(tmp_path: Path) -> None:
    result, _ = quantized(tmp_path, mlp(), "W4A16-g32", [X], algorithm="rtn", bias_correction=False)
    assert any("the data served to check the outputs alone" in note for note in result.notes)


def test_a_model_without_layers_and_broken_constants_are_told_before_the_data_is_blamed(tmp_path: Path) -> None:
    m = Maker()
    m.node("Gemm", ["x", m.weight("w", 8, 5)], "y", transA=1)
    with pytest.raises(FewbitError, match=r"no layer .* node 'y_node' \(it multiplies its input transposed"):
        quantized(tmp_path, m.model({"x": [8, 32]}, ["y"]), "W4A16-g32", [X])
    proto = convnet()
    bias = next(t for t in proto.graph.initializer if t.name == "stem.b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(8, np.nan, np.float32), "stem.b"))
    for recipe, data in (("W8A8", [pictures()]), ("W4A16", [pictures()]), ("W4A16", None)):
        with pytest.raises(FewbitError, match=r"node 'stem_node' \(Conv\): its constant 'stem.b' holds NaN"):
            quantized(tmp_path, proto, recipe, data)


def test_outputs_that_numpy_cannot_hold_are_passed_over(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.node.append(onnx.helper.make_node("Cast", ["out"], ["half"], to=onnx.TensorProto.BFLOAT16))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("half", onnx.TensorProto.BFLOAT16, ["n", 10]))
    result, out = quantized(tmp_path, proto, "W4A16-g16", [X])
    few = "out_node: the data has less than two rows"
    assert [note for note in result.notes if few not in note] == ["the biases of 2 layers were corrected"]
    runner = Runner(out)
    assert runner.run({"x": X}, ["out"])["out"].shape == (64, 10)
    with pytest.raises(FewbitError, match=r"the output 'half' is tensor\(bfloat16\), which .* end the model in a Cast"):
        runner.run({"x": X})


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_one_output_with_an_addition_that_is_no_bias_stays_float_where_inputs_are_dynamic(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    m = Maker()
    hidden = m.node("MatMul", ["x", m.weight("w", 32, 16)], "hidden")
    one = m.node("MatMul", [hidden, m.weight("v", 16, 1)], "one")
    m.node("Add", [one, m.constant("wide", np.arange(5, dtype=np.float32).reshape(shape))], "y")
    proto = m.model({"x": ["n", 32]}, ["y"])
    result, out = quantized(tmp_path, proto, "W8A8-dynamic")
    assert list(result.skipped) == ["one_node"]
    assert sqnr(run(proto, {"x": X})[0], run(out, {"x": X})[0]) > 25
    out.unlink()
    packed, out = quantized(tmp_path, proto, "W4A8-dynamic-g16")
    assert not packed.skipped
    assert sqnr(run(proto, {"x": X})[0], run(out, {"x": X})[0]) > 10
    out.unlink()
    only = Recipe("W8A8-dynamic", rules=(Rule("hidden_node", skip=True),))
    with pytest.raises(FewbitError, match="one_node cannot have dynamic activations: it has one output"):
        quantized(tmp_path, proto, only)
