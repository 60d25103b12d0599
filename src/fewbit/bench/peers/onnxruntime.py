"""ONNX Runtime: ``MatMulNBits`` at accuracy level 4 (int8 products) for int4, ``DynamicQuantizeLinear`` for int8."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from fewbit.bench.case import Case, Contender, PeerUnavailable, Run


def contenders(case: Case) -> list[Contender]:
    """FP32, and the quantized product it has for the case."""
    try:
        ort, onnx = importlib.import_module("onnxruntime"), importlib.import_module("onnx")
    except ImportError:
        raise PeerUnavailable("onnxruntime and onnx are not installed (pip install 'fewbit[bench]')") from None
    maker = _Maker(ort, onnx, case)
    found = [maker.contender("ONNX Runtime FP32", maker.float32(), 4 * case.k * case.n, "float32")]
    if case.bits == 4 and case.group:
        found.append(maker.contender("ONNX Runtime int4, level 4", maker.int4(), case.packed_bytes(4)))
    if case.bits == 8 and not case.group:
        found.append(maker.contender("ONNX Runtime dynamic int8", maker.int8(), case.packed_bytes(4)))
    return found


class _Maker:
    """Builds the graphs and their sessions."""

    def __init__(self, ort: Any, onnx: Any, case: Case) -> None:
        self.ort, self.case = ort, case
        self.helper, self.float = onnx.helper, onnx.TensorProto.FLOAT
        self.initializer = onnx.numpy_helper.from_array
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = torch.get_num_threads()

    def float32(self) -> bytes:
        weight = self.initializer(np.ascontiguousarray(self.case.weight.numpy().T), "w")
        return self._model([self.helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])

    def int4(self) -> bytes:
        case = self.case
        codes, scale = case.rounded()
        nibbles = (codes + 8).to(torch.uint8).numpy()  # without zero points 8 stands for 0
        packed, scales = nibbles[..., ::2] | (nibbles[..., 1::2] << 4), scale.reshape(-1).numpy()
        node = self.helper.make_node(
            "MatMulNBits",
            ["x", "w", "s"],
            ["y"],
            domain="com.microsoft",
            K=case.k,
            N=case.n,
            bits=4,
            block_size=case.group,
            accuracy_level=4,
        )
        return self._model([node], [self.initializer(packed, "w"), self.initializer(scales, "s")])

    def int8(self) -> bytes:
        case = self.case
        rounded, scales = case.rounded()
        scale = scales.reshape(-1)
        codes = np.ascontiguousarray(rounded.reshape(case.n, case.k).to(torch.int8).numpy().T)
        nodes = [
            self.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            self.helper.make_node("MatMulInteger", ["q", "w", "qz"], ["i"]),
            self.helper.make_node("Cast", ["i"], ["f"], to=self.float),
            self.helper.make_node("Mul", ["qs", "s"], ["t"]),
            self.helper.make_node("Mul", ["f", "t"], ["y"]),
        ]
        return self._model(nodes, [self.initializer(codes, "w"), self.initializer(scale.numpy(), "s")])

    def _model(self, nodes: list[Any], weights: list[Any]) -> bytes:
        ends = [self.helper.make_tensor_value_info(name, self.float, None) for name in ("x", "y")]
        graph = self.helper.make_graph(nodes, "linear", ends[:1], ends[1:], weights)
        opsets = [self.helper.make_opsetid("", 17), self.helper.make_opsetid("com.microsoft", 1)]
        model = self.helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 8
        data: bytes = model.SerializeToString()
        return data

    def contender(self, name: str, model: bytes, nbytes: int, unit: str = "int8") -> Contender:
        """Sessions of the same model, each with its own weights."""
        feed = {"x": np.ascontiguousarray(self.case.x.numpy())}

        def run(session: Any) -> Run:
            return lambda: session.run(None, feed)

        sessions = [
            self.ort.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
            for _ in range(self.case.copies(nbytes))
        ]
        return Contender(name, [run(session) for session in sessions], nbytes, unit)
