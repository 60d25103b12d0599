"""The charts of the HTML page, as plain Plotly figures (dictionaries of data and layout).

Colours are names (``"blue"``, ``"text"``, …) that the page replaces by those of the reader's light or dark theme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbit.report.text import bytes_text

if TYPE_CHECKING:
    from fewbit.evaluate.layers import LayerCost, QuantizerCost
    from fewbit.report.comparison import Comparison

_LONGEST_LABEL = 22


@dataclass(frozen=True)
class Chart:
    """One figure with its place on the page: an HTML id, a heading, and a sentence that says how to read it."""

    key: str
    title: str
    hint: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def charts(comparison: Comparison) -> list[Chart]:
    """All charts that the comparison has figures for."""
    rows = comparison.rows
    made = [_sizes(comparison)]
    if rows:
        made = [_sqnr(rows), _split("weight", rows), _theory(rows), *made, _layer_sizes(rows)]
        if any(row.input is not None for row in rows):
            made.insert(2, _split("input", rows))
    return made


def _sqnr(rows: tuple[LayerCost, ...]) -> Chart:
    return Chart(
        "sqnr",
        "Signal to noise, layer by layer",
        "Higher is better; 6 dB are one bit. “In the model” carries the errors of the layers before; “alone” is "
        "the layer's own error on float input; “weights” is the weight tensor itself.",
        [
            _bars(rows, "in the model", "blue", [row.output_sqnr for row in rows], "%{y:.1f} dB"),
            _bars(rows, "alone", "teal", [row.alone_sqnr for row in rows], "%{y:.1f} dB"),
            _bars(rows, "weights", "grey", [row.weight_sqnr for row in rows], "%{y:.1f} dB"),
        ],
        {"barmode": "group", "xaxis": _layer_axis(rows), "yaxis": {"title": {"text": "SQNR, dB"}}},
    )


def _split(which: str, rows: tuple[LayerCost, ...]) -> Chart:
    costs = [row.weight if which == "weight" else row.input for row in rows]
    name = "Weights" if which == "weight" else "Inputs"
    return Chart(
        f"{which}-split",
        f"{name}: rounding against clipping",
        "Squared error as a share of the signal's energy. Rounding falls with a smaller step, clipping with a wider "
        "range; a good range balances the two.",
        [
            _bars(rows, "rounding", "blue", [_share(c, "rounding_share") for c in costs], "%{y:.3~g} %"),
            _bars(rows, "clipping", "orange", [_share(c, "clipping_share") for c in costs], "%{y:.3~g} %"),
        ],
        {"barmode": "stack", "xaxis": _layer_axis(rows), "yaxis": {"title": {"text": "error, % of the signal"}}},
    )


def _theory(rows: tuple[LayerCost, ...]) -> Chart:
    pairs = (("weights", "blue", [row.weight for row in rows]), ("inputs", "orange", [row.input for row in rows]))
    data = []
    for name, colour, costs in pairs:
        if any(cost is not None for cost in costs):
            ratios = [None if cost is None else cost.theory_ratio for cost in costs]
            trace = _bars(rows, name, colour, ratios, "%{y:.3f}")
            data.append({**trace, "type": "scatter", "mode": "markers"})
    return Chart(
        "theory",
        "Measured rounding error against step²/12",
        "1 is what a uniform rounding error gives. Below 1, many values lie on the grid already, as the zeros after "
        "a ReLU do; far from 1, the error is not uniform: few values a step, or a range that misses the data.",
        data,
        {
            "xaxis": _layer_axis(rows),
            "yaxis": {"title": {"text": "measured / theory"}, "rangemode": "tozero"},
            "shapes": [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": {"dash": "dot", "color": "text"}}
            ],
        },
    )


def _sizes(comparison: Comparison) -> Chart:
    size = comparison.size
    bars = [("weights in memory", size.before, size.after)]
    if size.file_before is not None or size.file_after is not None:
        bars.insert(0, ("on disk", size.file_before or 0, size.file_after or 0))
    data = []
    for which, (name, colour) in enumerate((("quantized", "blue"), ("original", "grey"))):
        values = [bar[2 - which] for bar in bars]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [bar[0] for bar in bars],
                "x": [value / 2**20 for value in values],
                "text": [bytes_text(value) if value else "" for value in values],
                "textposition": "auto",
                "marker": {"color": colour},
                "hovertemplate": "%{y}: %{text}<extra>%{fullData.name}</extra>",
            }
        )
    layout = {"barmode": "group", "xaxis": {"title": {"text": "MiB"}}, "height": 150 + 80 * len(bars)}
    layout["legend"] = {"traceorder": "reversed"}
    return Chart("sizes", "Size", "Exact bytes: packed codes, scales, zero points, padding, and what stayed float.", data, layout)


def _layer_sizes(rows: tuple[LayerCost, ...]) -> Chart:
    data = []
    for name, colour, sizes in (
        ("original", "grey", [row.bytes_before for row in rows]),
        ("quantized", "blue", [row.bytes_after for row in rows]),
    ):
        trace = _bars(rows, name, colour, [size / 1024 for size in sizes], "%{text}")
        data.append({**trace, "text": [bytes_text(size) for size in sizes], "textposition": "none"})
    return Chart(
        "layer-sizes",
        "Size, layer by layer",
        "Where the bytes are.",
        data,
        {"barmode": "group", "xaxis": _layer_axis(rows), "yaxis": {"title": {"text": "KiB"}}},
    )


def _bars(
    rows: tuple[LayerCost, ...], name: str, colour: str, values: list[float | None] | list[float], hover: str
) -> dict[str, Any]:
    """One bar a layer; what is missing or infinite has none."""
    return {
        "type": "bar",
        "name": name,
        "x": list(range(len(rows))),
        "y": [value if value is not None and math.isfinite(value) else None for value in values],
        "customdata": [row.name for row in rows],
        "marker": {"color": colour},
        "hovertemplate": f"%{{customdata}}: {hover}<extra>%{{fullData.name}}</extra>",
    }


def _layer_axis(rows: tuple[LayerCost, ...]) -> dict[str, Any]:
    every = max(1, math.ceil(len(rows) / 60))  # more labels than that cannot be read
    shown = range(0, len(rows), every)
    return {
        "tickmode": "array",
        "tickvals": list(shown),
        "ticktext": [_short(rows[index].name) for index in shown],
        "tickangle": -60 if len(rows) > 6 else 0,
        "automargin": True,
    }


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else "…" + name[1 - _LONGEST_LABEL :]


def _share(cost: QuantizerCost | None, which: str) -> float | None:
    if cost is None:
        return None
    share: float = getattr(cost, which)
    return share * 100
