"""Inspected models as table and document."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from torch import nn

from fewbit.evaluate.inspection import inspect_model
from fewbit.recipe import Recipe, Rule
from fewbit.report.inspection_table import inspection_document, inspection_table


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(10, 4)).eval()


def printed(model: nn.Module, recipe: Recipe | None) -> str:
    console = Console(file=io.StringIO(), width=200)
    title = None if recipe is None else recipe.scheme
    console.print(inspection_table(inspect_model(model, recipe), "net", title))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def line_of(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_one_line_a_layer_and_the_total(model: nn.Module) -> None:
    text = printed(model, None)
    assert line_of(text, "0")[1:5] == ["Conv2d", "8×3×3×3", "224", "float32"]
    assert line_of(text, "3") == [
        "3",
        "Linear",
        "4×10",
        "44",
        "float32",
        *["176", "B", "176", "B", "88", "B", "44", "B", "22", "B"],
    ]
    assert line_of(text, "total")[1] == "284"
    for heading in ("FP32", "FP16", "INT8", "INT4"):
        assert heading in text


def test_the_recipe_says_what_becomes_of_each_layer(model: nn.Module) -> None:
    text = printed(model, Recipe("W8A8", rules=(Rule("3", skip=True),)))
    assert "int8/channel/sym, uint8/tensor/asym" in text
    assert "folded into the layer before" in text
    assert "skipped by rule '3'" in text
    assert "smaller" in line_of(text, "total")


def test_document_has_bytes_of_every_width(model: nn.Module) -> None:
    inspection = inspect_model(model, Recipe("W4A16-g32"))
    document = json.loads(json.dumps(inspection_document(inspection)))
    layer = document["layers"][-1]
    assert layer == {
        "name": "3",
        "type": "Linear",
        "shape": [4, 10],
        "parameters": 44,
        "weights": "float32",
        "input": "float",
        "bytes": 176,
        "bytes_fp32": 176,
        "bytes_fp16": 88,
        "bytes_int8": 44,
        "bytes_int4": 22,
        "recipe": {
            "bytes": 4 * 32 // 2 + 4 * 2 + 16,
            "weights": "int4/g32/sym/f16",
            "input": "float",
            "reason": "scheme W4A16-g32",
        },
    }
    assert document["total"]["bytes"] == sum(each["bytes"] for each in document["layers"])
    assert document["total"]["bytes_recipe"] == sum(each["recipe"]["bytes"] for each in document["layers"])


def test_without_a_recipe_nothing_is_foretold(model: nn.Module) -> None:
    document = inspection_document(inspect_model(model))
    assert "bytes_recipe" not in document["total"]
    assert all("recipe" not in layer for layer in document["layers"])
