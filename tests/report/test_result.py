"""The plain value that `compare` gives, and what it turns into."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fewbit.evaluate.speed import Timing
from fewbit.report.result import Comparison, SizePair, TimePair


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_complete(comparison: Comparison) -> None:
    document = strict(comparison.to_json())
    assert isinstance(document, dict)
    assert [row["name"] for row in document["rows"]] == [row.name for row in comparison.rows]
    assert document["rows"][0]["weight"]["theory_ratio"] == 0.98
    assert document["rows"][1]["weight_sqnr"] == "inf"
    assert document["rows"][1]["output_sqnr"] is None
    assert document["outputs"][0] == {"name": "logits", "sqnr": 24.56, "cosine": 0.99812, "top1": 0.984}
    assert document["size"]["file_after"] == 4_950_123
    assert document["size"]["ratio"] == pytest.approx(18_608 / 4_896)
    assert document["time"]["speedup"] == pytest.approx(3)
    assert document["time"]["before"]["median"] == 0.0123
    assert document["notes"] == list(comparison.notes)


def test_dictionary_keeps_infinity(comparison: Comparison, bare: Comparison) -> None:
    assert comparison.to_dict()["rows"][1]["weight_sqnr"] == math.inf
    assert bare.to_dict()["time"] is None
    assert strict(bare.to_json())


def test_ratios_of_nothing_are_numbers() -> None:
    assert SizePair(10, 0).ratio == 10
    zero = Timing(0.0, 0.0, 0.0, 1)
    assert math.isfinite(TimePair(zero, zero, 1).speedup)


def test_str_is_the_table(comparison: Comparison) -> None:
    text = str(comparison)
    assert "features.0.conv" in text
    assert "same top-1 98.4 %" in text
    assert "\x1b" not in text


def test_html_goes_where_it_is_told(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    path = comparison.to_html(str(tmp_path / "page.html"))
    assert path == tmp_path / "page.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
