"""The whole demo, quick: real models, real integers, and figures as good as they ought to be."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from fewbit.demo.cnn import SHOWN, variants
from fewbit.demo.run import measure
from fewbit.demo.text import schemes

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def shown_and_document() -> tuple[str, dict[str, Any]]:
    told: list[tuple[str, int, int]] = []
    result = measure(quick=True, progress=lambda *step: told.append(step))
    for stage in ("image classifier", "text encoder"):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert [done for done, _ in steps] == list(range(steps[-1][1] + 1))  # none skipped, the last one reached
    console = Console(file=io.StringIO(), width=140)
    console.print(*result.tables())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), result.document()


def test_the_classifier_in_integers(shown_and_document: tuple[str, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in shown_and_document[1]["image_classifier"]["rows"]}
    assert list(rows) == ["FP32", "INT8 minmax", SHOWN]
    before, after = rows["FP32"], rows[SHOWN]
    assert (before["accuracy"], before["agreement"], before["sqnr"]) == (0.9, 1.0, None)
    assert before["size"] / after["size"] > 3.5
    assert after["sqnr"] > 18
    assert after["sqnr_unseen"] > 18
    assert after["agreement"] >= 0.9
    assert after["accuracy"] >= 0.85
    assert len(after["predictions"]) == 20


def test_the_encoder_in_integers(shown_and_document: tuple[str, dict[str, Any]]) -> None:
    before, after = shown_and_document[1]["text_encoder"]["rows"]
    assert (before["name"], after["name"]) == ("FP32", "W8A8-dynamic")
    assert before["size"] / after["size"] > 3.7
    assert before["wordsim"] == pytest.approx(0.729, abs=0.002)
    assert after["wordsim"] == pytest.approx(before["wordsim"], abs=0.01)
    assert after["simlex"] == pytest.approx(before["simlex"], abs=0.01)
    assert after["cosine"] > 0.99
    assert after["sqnr"] > 20


def test_what_people_see(shown_and_document: tuple[str, dict[str, Any]]) -> None:
    shown, document = shown_and_document
    for told in ("EfficientNet-Lite0", "MiniLM", "bald eagle", "prayer rug", "WordSim", "FP32"):
        assert told in shown
    json.dumps(document, allow_nan=False)


def test_settings_of_the_full_demo() -> None:
    full = {variant.name: variant for variant in variants()}
    assert {variant.calibrator for variant in full.values()} == {"minmax", "percentile", "mse", "entropy"}
    assert SHOWN in full
    scheme = full["INT8 mse, tensor weights"].recipe.default()
    assert (str(scheme.weights), str(scheme.activations)) == ("int8/tensor/sym", "uint8/tensor/asym")
    scheme = full["INT8 mse, sym activations"].recipe.default()
    assert (str(scheme.weights), str(scheme.activations)) == ("int8/channel/sym", "int8/tensor/sym")
    assert schemes() == ["W8A8-dynamic", "W4A16-g32"]
