"""The charts of the HTML page, as plain Plotly figures (dictionaries of data and layout).

Colours are names (``"blue"``, ``"text"``, …), which the page replaces by those of the light or dark theme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbit.report.text import bytes_text

if TYPE_CHECKING:
    from fewbit.evaluate.layers import LayerCost, QuantizerCost
    from fewbit.report.result import Comparison

_LONGEST_LABEL = 22

_HINTS = {
    "sqnr": (
        "Higher is better; 6 dB are one bit. “In the model” carries the errors of the layers before; “alone” "
        "is the layer's own error on float input; “weights” is the weight tensor's."
    ),
    "split": (
        "Squared error as a share of the signal's energy. Rounding falls with a smaller step, clipping with "
        "a wider range; a good range balances the two."
    ),
    "theory": (
        "1 is what a uniform rounding error gives. Below 1, many values lie on the grid already, as zeros "
        "behind a ReLU do; far from 1, the error is not uniform: few values a step, or a range that misses "
        "the data."
    ),
    "sizes": "Exact bytes: packed codes, scales, zero points, padding, and what stayed float.",
}

_THEORY_LINE = {
    "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
    "line": {"dash": "dot", "color": "text"},
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One figure with its place on the page: an HTML id, a heading, and how to read it."""

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
        _HINTS["sqnr"],
        [
            _bars(rows, "output, in the model", "blue", [row.output_sqnr for row in rows], "%{y:.1f} dB"),
            _points(rows, "output, alone", "orange", [row.alone_sqnr for row in rows], "%{y:.1f} dB"),
            _points(rows, "weights", "teal", [row.weight_sqnr for row in rows], "%{y:.1f} dB"),
        ],
        {"xaxis": _layer_axis(rows), "yaxis": {"title": {"text": "SQNR, dB"}}},
    )


def _split(which: str, rows: tuple[LayerCost, ...]) -> Chart:
    costs = [row.weight if which == "weight" else row.input for row in rows]
    name = "Weights" if which == "weight" else "Inputs"
    return Chart(
        f"{which}-split",
        f"{name}: rounding against clipping",
        _HINTS["split"],
        [
            _bars(rows, "rounding", "blue", [_share(c, "rounding_share") for c in costs], "%{y:.3~g} %"),
            _bars(rows, "clipping", "orange", [_share(c, "clipping_share") for c in costs], "%{y:.3~g} %"),
        ],
        {
            "barmode": "stack",
            "xaxis": _layer_axis(rows),
            "yaxis": {"title": {"text": "error, % of the signal"}},
        },
    )


def _theory(rows: tuple[LayerCost, ...]) -> Chart:
    pairs = (
        ("weights", "blue", [row.weight for row in rows]),
        ("inputs", "orange", [row.input for row in rows]),
    )
    data = []
    for name, colour, costs in pairs:
        if any(cost is not None for cost in costs):
            ratios = [None if cost is None else cost.theory_ratio for cost in costs]
            data.append(_points(rows, name, colour, ratios, "%{y:.3f}"))
    return Chart(
        "theory",
        "Measured rounding error against step²/12",
        _HINTS["theory"],
        data,
        {
            "xaxis": _layer_axis(rows),
            "yaxis": {"title": {"text": "measured / theory"}, "rangemode": "tozero"},
            "shapes": [_THEORY_LINE],
        },
    )


def _sizes(comparison: Comparison) -> Chart:
    size = comparison.size
    places, originals, quantized = ["weights in memory"], [size.before], [size.after]
    if size.file_after is not None:
        places.append("on disk")
        originals.append(size.file_before or 0)
        quantized.append(size.file_after)
    data = [
        _wide_bars(places, "quantized", "blue", quantized),
        _wide_bars(places, "original", "grey", originals),
    ]
    layout = {
        "barmode": "group",
        "xaxis": {"title": {"text": "MiB"}},
        "yaxis": {"autorange": "reversed"},
        "height": 150 + 80 * len(places),
    }
    return Chart("sizes", "Size", _HINTS["sizes"], data, layout)


def _wide_bars(places: list[str], name: str, colour: str, sizes: list[int]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": places,
        "x": [size / 2**20 for size in sizes],
        "text": [bytes_text(size) if size else "" for size in sizes],
        "textposition": "auto",
        "marker": {"color": colour},
        "hovertemplate": "%{y}: %{text}<extra>%{fullData.name}</extra>",
    }


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


def _points(
    rows: tuple[LayerCost, ...], name: str, colour: str, values: list[float | None] | list[float], hover: str
) -> dict[str, Any]:
    """One point a layer."""
    trace = _bars(rows, name, colour, values, hover)
    return {**trace, "type": "scatter", "mode": "markers", "marker": {"color": colour, "size": 7}}


def _layer_axis(rows: tuple[LayerCost, ...]) -> dict[str, Any]:
    every = max(1, math.ceil(len(rows) / 60))  # more labels than that cannot be read
    shown = range(0, len(rows), every)
    return {
        "range": [-0.7, len(rows) - 0.3],
        "tickmode": "array",
        "tickvals": list(shown),
        "ticktext": [_short(rows[index].name) for index in shown],
        "tickangle": -60 if len(rows) > 6 else 0,
        "automargin": True,
    }


def _short(name: str) -> str:
    """Both ends of a long name: layers differ in their block's number and in their own name."""
    half = _LONGEST_LABEL // 2
    return name if len(name) <= _LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _share(cost: QuantizerCost | None, which: str) -> float | None:
    if cost is None:
        return None
    share: float = getattr(cost, which)
    return share * 100
