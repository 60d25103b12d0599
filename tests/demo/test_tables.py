"""Tables from results made up here: every figure stands in its row."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fewbit.demo.cnn import SHOWN, CnnResult, CnnRow
from fewbit.demo.run import DemoResult
from fewbit.demo.text import TextResult, TextRow

FLOAT = CnnRow("FP32", 18_000_000, None, None, 1.0, 0.9, 0.030, 0.020, ("goose", "jeep", "drum"))
INT8 = CnnRow(SHOWN, 4_500_000, 24.51, 23.97, 0.95, 0.85, 0.012, 0.005, ("goose", "jeep", "drum"))
WORSE = replace(INT8, name="INT8 worse", sqnr=11.0, predictions=("spoonbill", "jeep", "cannon"))
LONG = replace(INT8, name="INT8 mse, sym activations", predictions=("goose", "jeep", "cannon"))
CNN = CnnResult(4_652_008, 2, ("a.jpg", "b.jpg", "c.jpg"), ("goose", "convertible", "drum"), (FLOAT, INT8, WORSE, LONG))
TEXT = TextResult(
    22_713_216,
    50,
    (
        TextRow("FP32", 90_000_000, None, 1.0, 0.729, 0.446, 0.020),
        TextRow("W8A8-dynamic", 23_000_000, 30.2, 0.9987, 0.728, 0.445, 0.005),
    ),
)
RESULT = DemoResult(CNN, TEXT, threads=2, seconds=61.4)


@pytest.fixture
def text() -> str:
    console = Console(file=io.StringIO(), width=80)
    for table in RESULT.tables():
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, start: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())
    (line,) = (line for line in lines if line.startswith(start))
    return line


def test_costs_of_the_classifier(text: str) -> None:
    assert "(4.65 M weights) in INT8, 3 ImageNet pictures" in text
    assert row(text, "mse 4") == "mse 4.29 4.00× 24.5 95% 85% 12.0 2.50× 5.0 4.00×"
    assert "INT8 mse has 24.0 dB on the pictures not chosen on" in " ".join(text.split())
    assert row(text, "FP32 17") == "FP32 17.17 1.00× – 100% 90% 30.0 1.00× 20.0 1.00×"


def test_rows_are_single_lines_on_a_terminal_of_80_columns(text: str) -> None:
    assert row(text, "mse, sym") == "mse, sym activations 4.29 4.00× 24.5 95% 85% 12.0 2.50× 5.0 4.00×"
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_predictions_by_class_name(text: str) -> None:
    assert row(text, "goose") == "goose goose = spoonbill (worse)"
    assert row(text, "convertible") == "convertible jeep ="
    assert row(text, "drum") == "drum drum = cannon (worse, mse, sym activations)"


def test_costs_of_the_encoder(text: str) -> None:
    assert "22.7 M parameters" in text
    assert row(text, "W8A8-dynamic") == "W8A8-dynamic 21.93 3.91× 30.2 0.9987 0.728 0.445 5.0 4.00×"
    assert "61 seconds in all; threads: 2" in text


def test_the_document_is_json_and_complete() -> None:
    document = json.loads(json.dumps(RESULT.document(), allow_nan=False))
    rows = document["image_classifier"]["rows"]
    assert [r["name"] for r in rows] == ["FP32", SHOWN, "INT8 worse", LONG.name]
    assert rows[1]["size"] == 4_500_000
    assert rows[1]["predictions"] == ["goose", "jeep", "drum"]
    assert document["text_encoder"]["rows"][1]["wordsim"] == 0.728
    assert document["seconds"] == 61.4


def test_an_exact_copy_is_still_json() -> None:
    exact = replace(CNN, rows=(FLOAT, replace(INT8, sqnr=float("inf"))))
    document = json.loads(json.dumps(replace(RESULT, image_classifier=exact).document(), allow_nan=False))
    assert document["image_classifier"]["rows"][1]["sqnr"] == "inf"
