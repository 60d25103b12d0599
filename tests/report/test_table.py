"""Tables for the terminal."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from fewbit.evaluate.layers import LayerCost
from fewbit.report.result import Comparison
from fewbit.report.table import comparison_tables, layer_table, plain_table


def printed(what: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_whole_model(comparison: Comparison) -> None:
    text = printed(comparison_tables(comparison))
    for told in ("17.7 MiB", "4.67 MiB", "3.80× smaller", "4.72 MiB", "12.3 ms", "4.10 ms", "3.00× the speed"):
        assert told in text
    assert "SQNR 24.6 dB, cosine 0.99812, same top-1 98.4 %" in text
    assert "SQNR exact, cosine" in text
    assert "all outputs" in text
    assert "SQNR 25.0 dB" in text
    assert "100 samples in 10 batches" in text


def test_names_and_notes_are_text_and_no_markup(comparison: Comparison) -> None:
    text = printed(comparison_tables(comparison))
    assert "[red]x[/red]&" in text
    assert "note: [bold]layer[/bold] head stayed float" in text


def test_layers_tell_both_quantizers_in_decibels(row: LayerCost) -> None:
    line = next(line for line in printed(layer_table((row,))).splitlines() if "features" in line)
    # 2e-6 of 0.02 are 40.0 dB, 1e-6 43.0; 3e-5 of 0.5 are 42.2, and nothing is clipped there
    assert line.split() == [
        "features.0.conv", "288", "B", "31.9", "35.5", "43.2", "40.0", "43.0", "0.98", "42.2", "–", "0.61",
    ]  # fmt: skip


def test_specs_are_a_column_only_where_they_differ(row: LayerCost) -> None:
    same = printed(layer_table((row, row)))
    assert same.count("int8/channel/sym") == 1
    other = dataclasses.replace(row, weight_spec="int4/g32/sym")
    varied = printed(layer_table((row, other)))
    assert "int4/g32/sym" in varied
    assert varied.count("int8/channel/sym") == 1
    assert varied.count("uint8/tensor/asym") == 1


def test_a_model_that_is_one_layer_has_a_name(row: LayerCost) -> None:
    assert "(model)" in printed(layer_table((dataclasses.replace(row, name=""),)))


def test_a_hundred_columns_are_enough_for_every_figure(row: LayerCost) -> None:
    text = printed(layer_table((row,)), width=110)
    assert all(len(line) <= 110 for line in text.splitlines())
    assert "…" not in text


def test_without_layers_and_timing_there_is_less(bare: Comparison) -> None:
    text = printed(comparison_tables(bare))
    assert "1.00× smaller" in text
    for missing in ("time a batch", "on disk", "layers", "top-1", "all outputs"):
        assert missing not in text


def test_plain_tables_put_the_first_column_left() -> None:
    table = plain_table("t", "name", "figure")
    table.add_row("a", "1")
    lines = printed(table).splitlines()
    assert lines[-2].strip() == "a           1" or lines[-2].split() == ["a", "1"]
    assert table.columns[0].justify == "left"
    assert table.columns[1].justify == "right"


@pytest.mark.parametrize("before", [None, 20_000_000])
def test_files_are_compared_where_both_are_known(comparison: Comparison, before: int | None) -> None:
    size = dataclasses.replace(comparison.size, file_before=before)
    text = printed(comparison_tables(dataclasses.replace(comparison, size=size)))
    assert ("4,950,123 bytes" in text) == (before is None)
    assert ("4.04× smaller" in text) == (before is not None)
