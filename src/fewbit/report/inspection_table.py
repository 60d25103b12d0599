"""An inspected model as a `rich` table and as a JSON document."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.markup import escape
from rich.table import Table

from fewbit.evaluate.inspection import WIDTHS, InspectedLayer, Inspection
from fewbit.report.table import plain_table
from fewbit.report.text import bytes_text, count_text, smaller_text


def inspection_table(inspection: Inspection, title: str, recipe: str | None) -> Table:
    """One row a layer, and the totals below."""
    widths = [name.upper() for name, _ in WIDTHS]
    table = plain_table(title, "layer", "type", "shape", "parameters", "weights", "as it is", *widths)
    if recipe is not None:
        table.add_column("recipe", justify="right", no_wrap=True)
        table.add_column(recipe, justify="right", no_wrap=True)
    for layer in inspection.layers:
        table.add_row(*_cells(layer))
    table.add_section()
    table.add_row(*_totals(inspection))
    table.caption = "FP32 to INT4: every value at that width, without scales"
    if recipe is not None:
        table.caption += "; the recipe's bytes: packed codes with padding, scales, zero points, biases"
    return table


def inspection_document(inspection: Inspection) -> dict[str, Any]:
    """The same as plain values: bytes everywhere, names as in the model."""
    total = {"parameters": inspection.parameters, "bytes": inspection.nbytes}
    total |= {f"bytes_{name}": inspection.bytes_at(bits) for name, bits in WIDTHS}
    if inspection.planned_bytes is not None:
        total["bytes_recipe"] = inspection.planned_bytes
    return {"total": total, "layers": [_layer_document(layer) for layer in inspection.layers]}


def _layer_document(layer: InspectedLayer) -> dict[str, Any]:
    size = layer.size
    document = {
        "name": size.name,
        "type": size.kind,
        "shape": list(size.shape),
        "parameters": size.parameters,
        "weights": size.weights,
        "input": size.input,
        "bytes": size.nbytes,
    }
    document |= {f"bytes_{name}": size.bytes_at(bits) for name, bits in WIDTHS}
    if layer.planned is not None:
        planned = dataclasses.asdict(layer.planned)
        document["recipe"] = {"bytes": planned.pop("nbytes"), **planned}
    return document


def _cells(layer: InspectedLayer) -> list[str]:
    size = layer.size
    cells = [
        escape(size.name or "(model)"),
        escape(size.kind),
        "×".join(map(str, size.shape)),
        count_text(size.parameters),
        size.weights,
        bytes_text(size.nbytes),
        *(bytes_text(size.bytes_at(bits)) for _, bits in WIDTHS),
    ]
    if layer.planned is not None:
        cells += [_decision(layer), bytes_text(layer.planned.nbytes)]
    return cells


def _decision(layer: InspectedLayer) -> str:
    planned = layer.planned
    assert planned is not None
    if planned.weights != "float":
        return planned.weights if planned.input == "float" else f"{planned.weights}, {planned.input}"
    return escape(planned.reason) if planned.reason else "float"


def _totals(inspection: Inspection) -> list[str]:
    now, planned = inspection.nbytes, inspection.planned_bytes
    cells = ["total", "", "", count_text(inspection.parameters), "", bytes_text(now)]
    cells += [bytes_text(inspection.bytes_at(bits)) for _, bits in WIDTHS]
    if planned is not None:
        cells += [smaller_text(now, planned), bytes_text(planned)]
    return cells
