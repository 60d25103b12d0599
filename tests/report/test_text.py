"""Numbers as people read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fewbit.report.text import (
    bytes_text,
    count_text,
    decibels_text,
    json_safe,
    percent_text,
    seconds_text,
    smaller_text,
    sqnr_text,
    times_text,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10240, "10.0 KiB"),
        (4_896_000, "4.67 MiB"),
        (1023 * 1024, "1.00 MiB"),
        (500 * 2**20, "500 MiB"),
        (3 * 2**40, "3.00 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.50 s"), (123.4, "123 s"), (0.0123, "12.3 ms"), (0.00085, "850 µs"), (5e-7, "0.50 µs"), (0, "0.00 µs")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(24.56, "24.6"), (math.inf, "exact"), (None, "–"), (-math.inf, "-inf"), (-2.2, "-2.2")]
)
def test_decibels(value: float | None, text: str) -> None:
    assert decibels_text(value) == text


def test_sqnr_has_its_unit() -> None:
    assert sqnr_text(24.56) == "24.6 dB"
    assert sqnr_text(math.inf) == "exact"
    assert sqnr_text(-math.inf) == "-inf dB"


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.984, "98.4 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.000123, "0.012 %"), (None, "–")]
)
def test_percent(fraction: float | None, text: str) -> None:
    assert percent_text(fraction) == text


def test_counts_and_factors() -> None:
    assert count_text(4652008) == "4,652,008"
    assert times_text(3.974) == "3.97×"
    assert times_text(39.74) == "39.7×"
    assert times_text(397.4) == "397×"


def test_json_has_no_number_for_infinity_and_nan() -> None:
    value = {"a": [math.inf, (1.5, -math.inf)], 2: math.nan, "path": Path("x"), "none": None, "yes": True}
    plain = json_safe(value)
    assert plain == {"a": ["inf", [1.5, "-inf"]], "2": "nan", "path": "x", "none": None, "yes": True}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert float(plain["a"][0]) == math.inf


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(400, 100, "4.00× smaller"), (5, 5, "1.00× smaller"), (43, 100, "2.33× larger"), (0, 9, "9.00× larger")],
)
def test_what_became_of_a_size(before: int, after: int, text: str) -> None:
    assert smaller_text(before, after) == text
