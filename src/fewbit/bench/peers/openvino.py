"""OpenVINO: compressed weights, with activations quantized on the fly in groups (its fastest) and without."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import torch

from fewbit.bench.case import Case, Contender, PeerUnavailable, Run


def contenders(case: Case) -> list[Contender]:
    """FP32, and weights of 4 or 8 bits with dynamic quantization groups of the weights' size."""
    # Its telemetry starts processes beside the race; without the package OpenVINO takes a stub of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        ov = importlib.import_module("openvino")
    except ImportError:
        raise PeerUnavailable("openvino is not installed (pip install 'fewbit[bench]')") from None
    maker = _Maker(ov, case)
    found = [maker.contender("OpenVINO FP32", maker.float32(), 4 * case.k * case.n, 0, "float32")]
    if case.bits in (4, 8):
        model, nbytes = maker.compressed(), case.packed_bytes(2)
        group = case.group or case.k
        found.append(maker.contender(f"OpenVINO int{case.bits}, dynamic activations", model, nbytes, group))
        found.append(maker.contender(f"OpenVINO int{case.bits}, float activations", model, nbytes, 0))
    return found


class _Maker:
    """Builds the models and compiles them."""

    def __init__(self, ov: Any, case: Case) -> None:
        self.ov, self.case, self.core = ov, case, ov.Core()
        self.kept: list[Any] = []  # arrays whose memory OpenVINO may read later
        self.opset = importlib.import_module("openvino.opset13")

    def float32(self) -> Any:
        return self._model(self._constant(self.case.weight.numpy()))

    def compressed(self) -> Any:
        """Codes, converted and scaled in the graph: the pattern that the plugin keeps compressed."""
        case, op = self.case, self.opset
        rounded, scale = case.rounded()
        shape = list(rounded.shape)
        kind = self.ov.Type.i4 if case.bits == 4 else self.ov.Type.i8
        codes = rounded.to(torch.int8).numpy()
        if case.bits == 4:
            tensor = self.ov.Tensor(kind, self.ov.Shape(shape))
            pairs = codes.reshape(-1, 2) & 15
            tensor.data[:] = (
                (pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8).reshape(tensor.data.shape).view(tensor.data.dtype)
            )
            constant = op.constant(tensor)
        else:
            constant = self._constant(codes)
        wide = op.convert(constant, np.float16)
        scaled = op.multiply(wide, self._constant(scale.to(torch.float16).numpy()))
        flat = op.reshape(scaled, self._constant(np.array([case.n, case.k])), special_zero=False)
        return self._model(op.convert(flat, np.float32))

    def _constant(self, array: np.ndarray[Any, Any]) -> Any:
        self.kept.append(array)
        return self.opset.constant(array)

    def _model(self, weight: Any) -> Any:
        x = self.opset.parameter([self.case.m, self.case.k], np.float32)
        return self.ov.Model([self.opset.matmul(x, weight, False, True)], [x])

    def contender(self, name: str, model: Any, nbytes: int, group: int, unit: str = "int8") -> Contender:
        """Compiled models, each with its own weights."""
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
        }
        array = np.ascontiguousarray(self.case.x.numpy())
        x = self.ov.Tensor(array)
        kept = [self.kept, array, model]

        def run(request: Any) -> Run:
            return lambda: request.infer() if kept else None

        copies = []
        for _ in range(self.case.copies(nbytes)):
            request = self.core.compile_model(model, "CPU", config).create_infer_request()
            request.set_input_tensor(x)
            copies.append(run(request))
        return Contender(name, copies, nbytes, unit)
