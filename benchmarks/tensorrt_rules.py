"""Exports for TensorRT, full size, against the rules of its explicit quantization (``fewbit.onnxgraph.rules``).

EfficientNet-Lite0, ResNet-18 and MobileNetV2 as ``onnx_cnn.py`` exports them, quantized from Python with
``target="tensorrt"``: activations and weights int8, zero points 0, biases float, codes on both sides of additions.

    python benchmarks/tensorrt_rules.py --folder onnx-models

writes ``benchmarks/results/tensorrt_rules.*``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import _results
import numpy as np
import onnx_ir as ir
from onnx_cnn import NETS, export

import fewbit
from fewbit.onnxgraph import rules


def coded_sides(graph: Any) -> tuple[int, int]:
    """How many additions of two tensors there are, and how many have codes on at least one side."""
    adds = [node for node in graph if node.op_type == "Add" and all(value.producer() for value in node.inputs)]
    coded = [n for n in adds if any(v.producer().op_type == "DequantizeLinear" for v in n.inputs)]
    return len(adds), len(coded)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Quantize one network and check it."""
    data = [np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)]
    out = folder / f"{name}.tensorrt.onnx"
    result = (
        fewbit.quantize(
            export(name, folder), "W8A8", data, algorithm="rtn", bias_correction=False, output=out, target="tensorrt"
        )
        if not out.exists()
        else None
    )
    model = ir.load(out)
    kinds = Counter(node.op_type for node in model.graph)
    additions, coded = coded_sides(model.graph)
    return {
        "net": name,
        "layers": None if result is None else len(result.layers),
        "quantize": kinds["QuantizeLinear"],
        "dequantize": kinds["DequantizeLinear"],
        "additions": additions,
        "coded": coded,
        "violations": rules.violations(model, "tensorrt"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("onnx-models"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in NETS:
        entries.append(measure(name, options.folder))
        print(entries[-1], file=sys.stderr, flush=True)
    rows = [
        (e["net"], *(f"{e[k]}" for k in ("layers", "quantize", "dequantize")), f"{e['coded']} of {e['additions']}",
         str(len(e["violations"])))
        for e in entries
    ]  # fmt: skip
    columns = ("network", "layers", "QuantizeLinear", "DequantizeLinear", "additions with codes", "rules broken")
    text = f"""# Exports for TensorRT against its rules

`fewbit.quantize(…, "W8A8", target="tensorrt")` of full-size networks, checked by `fewbit.onnxgraph.rules`:
onnx.checker; all zero points 0; int8 activations with one scale, int8 weights with one a channel; float biases; an
addition whose sum is coded has codes on the side that no product computes for it alone; no pair that stands alone.
TensorRT itself was not run.
Made by `python benchmarks/tensorrt_rules.py`.

{_results.markdown_table(columns, rows)}

{chr(10).join(f"- {e['net']}: {v}" for e in entries for v in e["violations"])}"""
    _results.write("tensorrt_rules", text.rstrip(), {"rows": entries})


if __name__ == "__main__":
    main()
