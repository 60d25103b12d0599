from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx_cases import convnet, mlp, pictures, saved

import fewbit
from fewbit.evaluate.onnx_inspection import inspect_onnx


def test_a_float_model(tmp_path: Path) -> None:
    found = inspect_onnx(saved(convnet(), tmp_path))
    assert found.inputs == {"x": "float batch×3×16×16"}
    assert found.nodes["Conv"] == 5
    assert found.opsets == {"": 17}
    assert found.layers[0].shape == (8, 3, 3, 3)
    assert {layer.weights for layer in found.layers} == {"float"}
    assert found.nbytes >= 4 * (found.parameters - 10)


@pytest.mark.parametrize(
    ("recipe", "target", "kind", "weights", "source"),
    [
        ("W8A8", "onnxruntime", "Conv", "int8", "coded"),
        ("W8A16", "onnxruntime", "Conv", "int8", "float"),
        ("W8A8-dynamic", "onnxruntime", "MatMulInteger", "int8", "coded"),
        ("W4A16-g16", "onnxruntime", "MatMulNBits", "int4/g16", "float"),
        ("W4A16-g16", "tensorrt", "Gemm", "int4/g16", "float"),
    ],
)
def test_quantized_models(tmp_path: Path, recipe: str, target: str, kind: str, weights: str, source: str) -> None:
    conv = kind == "Conv"
    data: Any = [pictures()] if conv else None
    out = tmp_path / "q.onnx"
    fewbit.quantize(saved(convnet() if conv else mlp(), tmp_path), recipe, data, output=out, target=target)
    found = inspect_onnx(out).layers[0]
    assert (found.kind, found.weights, found.input) == (kind, weights, source)
    assert found.parameters == (8 * 3 * 3 * 3 if conv else 32 * 48)
    assert found.bytes_at(4) == found.parameters // 2
