"""Small ONNX models for the tests, written node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


class Maker:
    """Collects nodes and constants."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan = max(1, int(np.prod(shape[1:])))
        return self.constant(name, (self.random.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def conv(self, x: str, name: str, out: int, into: int, k: int = 3, groups: int = 1, **more: Any) -> str:
        inputs = [x, self.weight(f"{name}.w", out, into // groups, k, k), self.weight(f"{name}.b", out)]
        return self.node("Conv", inputs, name, kernel_shape=[k, k], pads=[k // 2] * 4, group=groups, **more)

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        r = self.random
        parts = [r.uniform(0.5, 1.5, channels), r.normal(size=channels), r.normal(size=channels)]
        parts.append(r.uniform(0.5, 2, channels))
        names = [self.constant(f"{name}.{i}", part.astype(np.float32)) for i, part in enumerate(parts)]
        return self.node("BatchNormalization", [x, *names], name)

    def relu6(self, x: str, name: str) -> str:
        bounds = [self.constant(f"{name}.{i}", np.array(v, np.float32)) for i, v in enumerate((0, 6))]
        return self.node("Clip", [x, *bounds], name)

    def model(self, inputs: dict[str, list[Any]], outputs: list[str], opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        made.producer_name = "a test"
        onnx.helper.set_model_props(made, {"key": "kept"})
        return made


def convnet(opset: int = 17) -> onnx.ModelProto:
    """Convolution, batch norm, ReLU6, depthwise, a residual addition, pooling, a classifier."""
    m = Maker()
    x = m.relu6(m.batch_norm(m.conv("x", "stem", 8, 3), "stem.bn", 8), "stem.act")
    y = m.relu6(m.conv(x, "expand", 16, 8, 1), "expand.act")
    y = m.relu6(m.conv(y, "depth", 16, 16, 3, groups=16), "depth.act")
    y = m.conv(y, "project", 8, 16, 1)
    y = m.conv(m.node("Add", [x, y], "sum"), "last", 12, 8, 3, strides=[2, 2])
    y = m.node("GlobalAveragePool", [m.node("Relu", [y], "last.act")], "pool")
    y = m.node("Flatten", [y], "flat")
    m.node("Gemm", [y, m.weight("fc.w", 5, 12), m.weight("fc.b", 5)], "logits", transB=1)
    return m.model({"x": ["batch", 3, 16, 16]}, ["logits"], opset)


def linear_stream() -> onnx.ModelProto:
    """Two projections onto one residual stream that a convolution reads."""
    m = Maker(1)
    x = m.node("Relu", [m.conv("x", "stem", 6, 3)], "stem.act")
    a = m.conv(x, "a", 4, 6, 1)
    b = m.conv(m.node("Relu", [m.conv(a, "inner", 6, 4, 1)], "inner.act"), "b", 4, 6, 1)
    m.conv(m.node("Add", [a, b], "sum"), "out", 5, 4, 1)
    return m.model({"x": ["batch", 3, 8, 8]}, ["out"])


def wide(factor: float) -> onnx.ModelProto:
    """Three convolutions and a classifier; one channel of the second is so many times wider, and read as much less."""
    m = Maker(4)
    y = m.node("Relu", [m.conv("x", "a", 6, 3)], "a.act")
    y = m.node("Relu", [m.conv(y, "b", 6, 6)], "b.act")
    y = m.node("Relu", [m.conv(y, "c", 6, 6)], "c.act")
    y = m.node("Flatten", [m.node("GlobalAveragePool", [y], "pool")], "flat")
    m.node("Gemm", [y, m.weight("fc.w", 5, 6), m.weight("fc.b", 5)], "logits", transB=1)
    made = m.model({"x": ["batch", 3, 16, 16]}, ["logits"])
    for constant in made.graph.initializer:
        array = numpy_helper.to_array(constant).copy()
        if constant.name in ("b.w", "b.b"):
            array[2] *= factor
        elif constant.name == "c.w":
            array[:, 2] /= factor
        constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    return made


def mlp(opset: int = 17) -> onnx.ModelProto:
    """MatMul, bias, ReLU, MatMul; input [batch, 32], 48 hidden."""
    m = Maker(2)
    y = m.node("MatMul", ["x", m.weight("first.w", 32, 48)], "first")
    y = m.node("Relu", [m.node("Add", [y, m.weight("first.b", 48)], "biased")], "act")
    m.node("Gemm", [y, m.weight("second.w", 48, 10), m.weight("second.b", 10)], "out")
    return m.model({"x": ["batch", 32]}, ["out"], opset)


def branches() -> onnx.ModelProto:
    """Max pooling and a convolution concatenated; a hard function that has no integer kernel."""
    m = Maker(3)
    x = m.node("Relu", [m.conv("x", "stem", 4, 3)], "stem.act")
    pooled = m.node("MaxPool", [x], "pooled", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = m.node("Concat", [pooled, m.conv(x, "side", 4, 4)], "joined", axis=1)
    m.conv(m.node("HardSwish", [m.conv(joined, "mixed", 6, 8)], "swish"), "out", 3, 6, 1)
    return m.model({"x": ["batch", 3, 8, 8]}, ["out"])


def branching() -> onnx.ModelProto:
    """An If whose branches read a tensor and a weight of the graph around them, between two convolutions; its inner
    convolution has the name of the first."""
    m = Maker(5)
    tensor = helper.make_tensor_value_info
    conv = helper.make_node("Conv", ["a", m.weight("inner.w", 4, 4, 1, 1)], ["t"], name="a_node")
    then = helper.make_graph([conv], "then", [], [tensor("t", TensorProto.FLOAT, ["n", 4, 8, 8])])
    negated = helper.make_node("Neg", ["a"], ["e"], name="e_node")
    other = helper.make_graph([negated], "else", [], [tensor("e", TensorProto.FLOAT, ["n", 4, 8, 8])])
    m.conv("x", "a", 4, 3)
    mean = m.node("ReduceMean", ["x"], "mean", keepdims=0)
    truth = m.node("Greater", [mean, m.constant("zero", np.array(0, np.float32))], "truth")
    m.conv(m.node("If", [truth], "if", then_branch=then, else_branch=other), "y", 5, 4, 1)
    return _typed(m.model({"x": ["n", 3, 8, 8]}, ["y"]))


def looping() -> onnx.ModelProto:
    """A Loop that adds a tensor of the graph around it twice, between two convolutions."""
    m = Maker(6)
    tensor = helper.make_tensor_value_info
    shape = ["n", 4, 8, 8]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["state", "a"], ["next"])],
        "body",
        [tensor("i", TensorProto.INT64, []), tensor("go", TensorProto.BOOL, []), tensor("state", 1, shape)],
        [tensor("on", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, shape)],
    )
    a = m.conv("x", "a", 4, 3)
    twice, start = m.constant("twice", np.array(2, np.int64)), m.constant("start", np.array(True))
    m.conv(m.node("Loop", [twice, start, a], "looped", body=body), "y", 5, 4, 1)
    return _typed(m.model({"x": ["n", 3, 8, 8]}, ["y"]))


def _typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 8, 8]))
    return proto


def pictures(count: int = 4, channels: int = 3, size: int = 16, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels, size, size)).astype(np.float32)


def as_ir(proto: onnx.ModelProto) -> Any:
    return ir.serde.deserialize_model(proto)


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(proto, path)
    return path


def run(model: Any, feeds: dict[str, np.ndarray], optimize: bool = True) -> list[np.ndarray]:
    """Outputs of a proto, an ir model or a file."""
    import onnxruntime as ort

    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    elif not isinstance(model, str | Path):
        model = ir.serde.serialize_model(model).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options)
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def sqnr(x: np.ndarray, y: np.ndarray) -> float:
    error = float(((x - y) ** 2).sum())
    return 10 * np.log10(float((x**2).sum()) / error) if error else np.inf
