"""Sortable HTML tables: every cell carries the figure to sort by beside the text to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from fewbit.report.text import bytes_text, count_text, decibels_text, percent_text

if TYPE_CHECKING:
    from fewbit.evaluate.layers import QuantizerCost
    from fewbit.report.result import Comparison


@dataclass(frozen=True)
class Column:
    """A heading, the raw values (None where there is none), and how a value reads."""

    heading: str
    values: Sequence[Any]
    text: Callable[[Any], str] = str
    is_number: bool = True
    is_code: bool = False


def html_table(key: str, columns: Sequence[Column]) -> str:
    """A scrolling table that the page's script sorts.

    Args:
        key: The HTML id.
        columns: All of one length.
    """
    heads = "".join(
        f'<th scope="col" data-kind="{"number" if c.is_number else "text"}">'
        f'<button type="button">{escape(c.heading)}</button></th>'
        for c in columns
    )
    lines = zip(*([_cell(column, value) for value in column.values] for column in columns))
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return (
        f'<div class="scroll"><table class="sortable" id="{escape(key)}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def layer_columns(comparison: Comparison) -> list[Column]:
    """Every figure of every layer."""
    rows = comparison.rows
    return [
        Column("layer", [row.name for row in rows], is_number=False, is_code=True),
        Column("#", range(1, len(rows) + 1)),
        Column("output SQNR", [row.output_sqnr for row in rows], decibels_text),
        Column("alone", [row.alone_sqnr for row in rows], decibels_text),
        Column("weight SQNR", [row.weight_sqnr for row in rows], decibels_text),
        Column("before", [row.bytes_before for row in rows], bytes_text),
        Column("after", [row.bytes_after for row in rows], bytes_text),
        *_quantizer_columns("weight", [row.weight for row in rows]),
        *_quantizer_columns("input", [row.input for row in rows]),
        Column("weights", [row.weight_spec for row in rows], is_number=False, is_code=True),
        Column("input", [row.input_spec for row in rows], is_number=False, is_code=True),
        Column("type", [row.kind for row in rows], is_number=False),
        Column("parameters", [row.parameters for row in rows], count_text),
    ]


def output_columns(comparison: Comparison) -> list[Column]:
    """The error of every output of the model."""
    outputs = comparison.outputs
    return [
        Column("output", [output.name for output in outputs], is_number=False, is_code=True),
        Column("SQNR, dB", [output.sqnr for output in outputs], decibels_text),
        Column("cosine", [output.cosine for output in outputs], "{:.6f}".format),
        Column("same top-1", [output.top1 for output in outputs], percent_text),
    ]


def _quantizer_columns(which: str, costs: Sequence[QuantizerCost | None]) -> list[Column]:
    def pick(name: str) -> list[Any]:
        return [None if cost is None else getattr(cost, name) for cost in costs]

    return [
        Column(f"{which} rounding MSE", pick("rounding_mse"), "{:.3g}".format),
        Column(f"{which} clipping MSE", pick("clipping_mse"), "{:.3g}".format),
        Column(f"{which} clipped", pick("clipped_fraction"), percent_text),
        Column(f"{which} vs theory", pick("theory_ratio"), "{:.3f}".format),
    ]


def _cell(column: Column, value: Any) -> str:
    code = ' class="code"' if column.is_code else ""
    if value is None:
        return f'<td{code} data-sort="">–</td>'
    key = str(value).replace("inf", "Infinity") if column.is_number else escape(str(value))
    return f'<td{code} data-sort="{key}">{escape(column.text(value))}</td>'
