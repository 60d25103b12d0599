"""ONNX models as `rich` tables and JSON documents: a comparison of two, and what one holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fewbit.evaluate.inspection import WIDTHS
from fewbit.report.table import plain_table
from fewbit.report.text import (
    bytes_text,
    count_text,
    decibels_text,
    percent_text,
    seconds_text,
    smaller_text,
    sqnr_text,
    times_text,
)
from fewbit.wording import counted

if TYPE_CHECKING:
    from fewbit.evaluate.onnx_inspection import OnnxInspection
    from fewbit.evaluate.onnx_models import OnnxComparison


def onnx_comparison_tables(comparison: OnnxComparison) -> Group:
    """The whole model, then its layers."""
    whole = plain_table("whole model", "", "before", "after", "")
    before, after = comparison.bytes_before, comparison.bytes_after
    whole.add_row("on disk", bytes_text(before), bytes_text(after), smaller_text(before, after))
    if comparison.time is not None:
        first, second = (timing.median for timing in comparison.time)
        speed = f"{times_text(first / max(second, 1e-12))} the speed in ONNX Runtime"
        whole.add_row("time a batch", seconds_text(first), seconds_text(second), speed)
    for output in comparison.outputs:
        error = f"SQNR {sqnr_text(output.sqnr)}, cosine {output.cosine:.5f}"
        if output.top1 is not None:
            error += f", same top-1 {percent_text(output.top1)}"
        whole.add_row(f"output {escape(output.name)}", "", "", error)
    whole.caption = f"{counted(comparison.samples, 'sample')} in {counted(comparison.batches, 'batch', 'batches')}"
    layers = plain_table("layers", "layer", "type", "SQNR dB")
    for row in comparison.rows:
        layers.add_row(escape(row.layer), row.kind, decibels_text(row.sqnr))
    layers.caption = "dB of signal over error of the layer's output, with the errors of the layers before"
    return Group(whole, layers) if comparison.rows else Group(whole)


def onnx_comparison_document(comparison: OnnxComparison) -> dict[str, Any]:
    """The same as plain values."""
    document = dataclasses.asdict(comparison)
    document["ratio"] = comparison.bytes_before / max(comparison.bytes_after, 1)
    if comparison.time is not None:
        first, second = comparison.time
        document["time"] = {
            "before": dataclasses.asdict(first),
            "after": dataclasses.asdict(second),
            "speedup": first.median / max(second.median, 1e-12),
        }
    return document


def onnx_inspection_tables(inspection: OnnxInspection, title: str) -> Group:
    """The model's inputs and outputs, and one row a layer."""
    about = plain_table(title, "", "")
    about.add_row("opset", ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in inspection.opsets.items()))
    for name, shape in inspection.inputs.items():
        about.add_row(f"input {escape(name)}", escape(shape))
    for name, shape in inspection.outputs.items():
        about.add_row(f"output {escape(name)}", escape(shape))
    about.add_row("nodes", ", ".join(f"{kind} {count}" for kind, count in inspection.nodes.items()))
    about.add_row("weights", f"{count_text(inspection.parameters)} in {bytes_text(inspection.nbytes)}")
    widths = [name.upper() for name, _ in WIDTHS]
    layers: Table = plain_table("layers", "layer", "type", "shape", "weights", "input", "as it is", *widths)
    for layer in inspection.layers:
        shape, sizes = "×".join(map(str, layer.shape)), [layer.nbytes, *(layer.bytes_at(bits) for _, bits in WIDTHS)]
        cells = (escape(layer.name), layer.kind, shape, layer.weights, layer.input)
        layers.add_row(*cells, *map(bytes_text, sizes))
    total = onnx_inspection_document(inspection)["total"]
    layers.add_section()
    layers.add_row("total", "", "", "", "", *map(bytes_text, total.values()))
    layers.caption = "weights of layers; FP32 to INT4: every value at that width, without scales"
    return Group(about, layers)


def onnx_inspection_document(inspection: OnnxInspection) -> dict[str, Any]:
    """The same as plain values, with the bytes of each layer's weight at other widths."""
    rows = [{"bytes": layer.nbytes, **layer.bytes_at_widths()} for layer in inspection.layers]
    document = dataclasses.asdict(inspection)
    document["layers"] = [layer | row for layer, row in zip(document["layers"], rows)]
    names = ["bytes", *(f"bytes_{name}" for name, _ in WIDTHS)]
    return {**document, "total": {name: sum(row[name] for row in rows) for name in names}}
