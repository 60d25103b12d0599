"""A comparison as `rich` tables for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fewbit.report.text import (
    bytes_text,
    count_text,
    decibels_text,
    percent_text,
    seconds_text,
    smaller_text,
    sqnr_text,
    times_text,
)
from fewbit.wording import counted

if TYPE_CHECKING:
    from fewbit.evaluate.layers import LayerCost, QuantizerCost
    from fewbit.report.result import Comparison


def comparison_tables(comparison: Comparison) -> Group:
    """The whole model, then its layers, then the notes."""
    parts: list[RenderableType] = [whole_table(comparison)]
    if comparison.rows:
        parts.append(layer_table(comparison.rows))
    parts.extend(f"note: {escape(note)}" for note in comparison.notes)
    return Group(*parts)


def whole_table(comparison: Comparison) -> Table:
    """Size, time and error of the whole model: before, after, and what it means."""
    table = plain_table("whole model", "", "before", "after", "")
    size = comparison.size
    table.add_row("weights", bytes_text(size.before), bytes_text(size.after), smaller_text(size.before, size.after))
    if size.file_before is not None or size.file_after is not None:
        table.add_row("on disk", _file(size.file_before), _file(size.file_after), _file_ratio(comparison))
    if comparison.time is not None:
        time = comparison.time
        before, after = seconds_text(time.before.median), seconds_text(time.after.median)
        meaning = f"{times_text(time.speedup)} the speed, {counted(time.threads, 'thread')}"
        table.add_row("time a batch", before, after, meaning)
    for output in comparison.outputs:
        error = f"SQNR {sqnr_text(output.sqnr)}, cosine {output.cosine:.5f}"
        if output.top1 is not None:
            error += f", same top-1 {percent_text(output.top1)}"
        table.add_row(f"output {escape(output.name)}", "", "", error)
    if len(comparison.outputs) > 1:
        table.add_row("all outputs", "", "", f"SQNR {sqnr_text(comparison.output_sqnr)}")
    table.caption = f"{counted(comparison.samples, 'sample')} in {counted(comparison.batches, 'batch', 'batches')}"
    return table


def layer_table(rows: tuple[LayerCost, ...]) -> Table:
    """One row a layer, in dB: its output, its weights, and the two errors of its two quantizers."""
    varied = [name for name in ("weight_spec", "input_spec") if len({getattr(row, name) for row in rows}) > 1]
    table = plain_table("layers", "layer", *(name.removesuffix("_spec") for name in varied), "size")
    for heading in (
        "output",
        "alone",
        "weight",
        "w rnd",
        "w clip",
        "w/theory",
        "in rnd",
        "in clip",
        "in/theory",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row.name or "(model)"),
            *(getattr(row, name) for name in varied),
            bytes_text(row.bytes_after),
            decibels_text(row.output_sqnr),
            decibels_text(row.alone_sqnr),
            decibels_text(row.weight_sqnr),
            *_quantizer_cells(row.weight),
            *_quantizer_cells(row.input),
        )
    table.caption = _legend(rows[0], varied)
    return table


def _legend(row: LayerCost, varied: list[str]) -> str:
    told = [] if "weight_spec" in varied else [f"weights {row.weight_spec}"]
    told += [] if "input_spec" in varied else [f"input {row.input_spec}"]
    return "; ".join(
        [
            *told,
            "dB of signal over error: output in the running model, with the errors of the layers before",
            "alone: this layer's own, on float input",
            "rnd and clip: the rounding and the clipping part, of weights (w) and input (in)",
            "/theory: rounding error over step²/12",
        ]
    )


def plain_table(title: str, *headings: str) -> Table:
    """A table in the style of all of fewbit's: the first column to the left, the others to the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _quantizer_cells(cost: QuantizerCost | None) -> tuple[str, str, str]:
    if cost is None:
        return "–", "–", "–"
    ratio = "–" if cost.theory_ratio is None else f"{cost.theory_ratio:.2f}"
    return _decibels_of(cost.rounding_share), _decibels_of(cost.clipping_share), ratio


def _decibels_of(share: float) -> str:
    """A part of the error as dB of the signal over it; none at all is a dash."""
    return decibels_text(-10 * math.log10(share)) if share > 0 else "–"


def _file(size: int | None) -> str:
    return "–" if size is None else bytes_text(size)


def _file_ratio(comparison: Comparison) -> str:
    before, after = comparison.size.file_before, comparison.size.file_after
    if before is None or after is None:
        return f"{count_text(before or after or 0)} bytes"
    return smaller_text(before, after)
