"""Figures of the page: which there are, and that they show the comparison's numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fewbit.evaluate.layers import LayerCost
from fewbit.report.charts import Chart, charts
from fewbit.report.result import Comparison, SizePair


def by_key(comparison: Comparison) -> dict[str, Chart]:
    return {chart.key: chart for chart in charts(comparison)}


def trace(chart: Chart, name: str) -> dict[str, Any]:
    return next(trace for trace in chart.data if trace["name"] == name)


def test_all_charts_have_a_heading_a_hint_and_strict_json(comparison: Comparison) -> None:
    made = charts(comparison)
    assert [chart.key for chart in made] == ["sqnr", "weight-split", "input-split", "theory", "sizes", "layer-sizes"]
    for chart in made:
        assert chart.title
        assert chart.hint.endswith(".")
        json.dumps([chart.data, chart.layout], allow_nan=False)


def test_sqnr_bars_leave_out_what_is_infinite_or_missing(comparison: Comparison) -> None:
    chart = by_key(comparison)["sqnr"]
    assert trace(chart, "output, in the model")["y"] == [31.87, None, 31.87]
    assert trace(chart, "weights")["y"] == [43.21, None, 43.21]
    assert trace(chart, "output, in the model")["type"] == "bar"
    assert trace(chart, "weights")["customdata"][0] == "features.0.conv"


def test_errors_are_stacked_shares_of_the_signal(comparison: Comparison) -> None:
    chart = by_key(comparison)["weight-split"]
    assert chart.layout["barmode"] == "stack"
    assert trace(chart, "rounding")["y"][0] == pytest.approx(0.01)  # 2e-6 of 0.02, in percent
    assert trace(chart, "clipping")["y"][0] == pytest.approx(0.005)
    inputs = by_key(comparison)["input-split"]
    assert trace(inputs, "rounding")["y"][:2] == [pytest.approx(0.006), None]


def test_ratios_stand_beside_a_line_at_one(comparison: Comparison) -> None:
    chart = by_key(comparison)["theory"]
    assert trace(chart, "weights")["y"] == [0.98, 0.98, None]
    assert trace(chart, "inputs")["y"] == [0.61, None, 0.61]
    (line,) = chart.layout["shapes"]
    assert line["y0"] == line["y1"] == 1


def test_sizes_are_in_mebibytes_with_exact_text(comparison: Comparison) -> None:
    sizes = by_key(comparison)["sizes"]
    assert trace(sizes, "quantized")["y"] == ["weights in memory", "on disk"]
    assert trace(sizes, "quantized")["x"] == [4_896_000 / 2**20, 4_950_123 / 2**20]
    assert trace(sizes, "original")["text"] == ["17.7 MiB", ""]
    layers = by_key(comparison)["layer-sizes"]
    assert trace(layers, "quantized")["y"][0] == 288 / 1024
    assert trace(layers, "quantized")["text"][0] == "288 B"


def test_weight_only_models_have_no_chart_of_inputs(row: LayerCost, comparison: Comparison) -> None:
    rows = (dataclasses.replace(row, input=None),)
    made = by_key(dataclasses.replace(comparison, rows=rows))
    assert "input-split" not in made
    assert [each["name"] for each in made["theory"].data] == ["weights"]


def test_without_layers_there_is_the_size(bare: Comparison) -> None:
    (chart,) = charts(bare)
    assert chart.key == "sizes"
    assert trace(chart, "original")["y"] == ["weights in memory"]


def test_long_names_and_many_layers_stay_readable(row: LayerCost, comparison: Comparison) -> None:
    rows = tuple(dataclasses.replace(row, name=f"model.layers.{i}.attention.output.dense") for i in range(200))
    chart = by_key(dataclasses.replace(comparison, rows=rows, size=SizePair(1, 1)))["sqnr"]
    axis = chart.layout["xaxis"]
    assert len(axis["ticktext"]) == len(axis["tickvals"]) <= 60
    assert all(len(text) <= 22 for text in axis["ticktext"])
    assert axis["ticktext"][0].startswith("model.laye")
    assert axis["ticktext"][0].endswith("tput.dense")
    assert len(chart.data[0]["x"]) == 200
