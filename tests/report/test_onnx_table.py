from __future__ import annotations

import json
from pathlib import Path

from onnx_cases import convnet, pictures, saved
from rich.console import Console

from fewbit.evaluate.onnx_inspection import inspect_onnx
from fewbit.evaluate.onnx_models import compare_onnx
from fewbit.report.onnx_table import (
    onnx_comparison_document,
    onnx_comparison_tables,
    onnx_inspection_document,
    onnx_inspection_tables,
)
from fewbit.report.text import json_safe


def shown(part: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def test_a_comparison_as_tables_and_json(tmp_path: Path) -> None:
    path = saved(convnet(), tmp_path)
    found = compare_onnx(path, path, [pictures()], repeats=1)
    text = shown(onnx_comparison_tables(found))
    assert "depth_node" in text
    assert "exact" in text
    assert "the speed in ONNX Runtime" in text
    document = json.loads(json.dumps(json_safe(onnx_comparison_document(found))))
    assert document["ratio"] == 1
    assert document["rows"][0]["sqnr"] == "inf"
    assert document["time"]["speedup"] > 0


def test_an_inspection_as_tables(tmp_path: Path) -> None:
    text = shown(onnx_inspection_tables(inspect_onnx(saved(convnet(), tmp_path)), "model.onnx"))
    assert "float batch×3×16×16" in text
    assert "16×1×3×3" in text
    assert "as it is" in text
    assert "INT4" in text


def test_widths_as_plain_values(tmp_path: Path) -> None:
    document = onnx_inspection_document(inspect_onnx(saved(convnet(), tmp_path)))
    stem = document["layers"][0]
    assert (stem["parameters"], stem["bytes"], stem["bytes_fp32"], stem["bytes_fp16"]) == (216, 864, 864, 432)
    assert (stem["bytes_int8"], stem["bytes_int4"]) == (216, 108)
    for name, value in document["total"].items():
        assert value == sum(layer[name] for layer in document["layers"])
