"""``fewbit inspect``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Command = Callable[..., Any]  # arguments in, an Outcome out


def test_layers_and_widths(command: Command) -> None:
    done = command("inspect", "nets:cnn", "--json")
    assert done.code == 0, done.stderr
    total = done.document["total"]
    assert total["parameters"] == 216 + 16 + 2880 + 10
    assert total["bytes"] == total["bytes_fp32"] == (216 + 32 + 2890) * 4 + 8
    assert total["bytes_int8"] == 216 + 32 + 2890 + 8
    assert [layer["type"] for layer in done.document["layers"]] == ["Conv2d", "BatchNorm2d", "Linear"]
    assert done.document["recipe"] is None


def test_the_foretold_bytes_are_those_that_quantize_makes(command: Command) -> None:
    foretold = command("inspect", "nets:cnn", "--recipe", "W4A16-g32", "--json").document["total"]["bytes_recipe"]
    made = command("quantize", "nets:cnn", "--recipe", "W4A16-g32", "-o", "out", "--json").document["bytes_after"]
    assert foretold == made


def test_people_see_a_table(command: Command) -> None:
    text = command("inspect", "nets:cnn", "-r", "W8A8").stdout
    for told in ("Conv2d", "8×3×3×3", "INT4", "W8A8", "folded into the layer before", "total"):
        assert told in text


def test_a_saved_quantized_model(command: Command, quantized: str) -> None:
    document = command("inspect", quantized, "--json").document
    assert [layer["weights"] for layer in document["layers"]] == ["int8/channel/sym"] * 2
    assert [layer["input"] for layer in document["layers"]] == ["uint8/tensor/asym"] * 2


def test_a_rule_that_matches_nothing_is_told(command: Command, folder: object) -> None:
    from pathlib import Path

    Path("r.toml").write_text('scheme = "W8A8"\n[[rule]]\nmatch = "lm_head"\nskip = true\n')
    done = command("inspect", "nets:cnn", "--recipe", "r.toml")
    assert done.code == 2
    assert "lm_head" in done.stderr
