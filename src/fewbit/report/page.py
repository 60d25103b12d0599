"""A comparison as one HTML page that is complete in itself: style, script and Plotly are inside it.

The page's policy forbids every request, so opening it sends nothing anywhere.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from fewbit import __version__
from fewbit.atomic import write_text
from fewbit.errors import require
from fewbit.report.charts import Chart, charts
from fewbit.report.html_table import html_table, layer_columns, output_columns
from fewbit.report.text import bytes_text, percent_text, seconds_text, sqnr_text, times_text
from fewbit.wording import counted

if TYPE_CHECKING:
    from fewbit.report.result import Comparison


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page and return its path; an interrupted write leaves nothing.

    Raises:
        MissingExtraError: plotly is not installed.
        FewbitError: The file cannot be written.
    """
    write_text(path, render_page(comparison))
    return path


def render_page(comparison: Comparison, title: str = "What quantization cost") -> str:
    """The page as text.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plotly = require("plotly.offline", "report")
    made = charts(comparison)
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        lead=escape(_lead(comparison)),
        style=_asset("page.css"),
        cards="\n".join(_cards(comparison)),
        outputs=_outputs(comparison),
        notes=_notes(comparison),
        charts="\n".join(_panel(chart.title, chart.hint, _plot(chart)) for chart in made),
        table=_layers(comparison),
        data=_script_json({chart.key: {"data": chart.data, "layout": chart.layout} for chart in made}),
        plotly=plotly.get_plotlyjs(),
        script=_asset("page.js"),
        version=escape(__version__),
    )


def _lead(comparison: Comparison) -> str:
    layers = len(comparison.rows)
    return (
        f"{counted(layers, 'quantized layer')}, measured on {counted(comparison.samples, 'sample')} in "
        f"{counted(comparison.batches, 'batch', 'batches')}, against the original model."
    )


def _cards(comparison: Comparison) -> list[str]:
    size, time = comparison.size, comparison.time
    sizes = f"{bytes_text(size.before)} → {bytes_text(size.after)} of weights"
    if size.file_after is not None:
        sizes += f", {bytes_text(size.file_after)} on disk"
    cards = [
        _card("Smaller", times_text(size.ratio), sizes),
        _card("Output SQNR", sqnr_text(comparison.output_sqnr), "signal to quantization noise"),
    ]
    if comparison.top1 is not None:
        cards.append(_card("Same prediction", percent_text(comparison.top1), "top-1 agreement with the original"))
    else:
        cards.append(_card("Cosine", f"{comparison.cosine:.5f}", "similarity to the original's output"))
    if time is not None:
        medians = f"{seconds_text(time.before.median)} → {seconds_text(time.after.median)} a batch"
        detail = f"{medians}, medians of {time.before.repeats} runs, {counted(time.threads, 'thread')}"
        cards.append(_card("Speed", times_text(time.speedup), detail))
    return cards


def _card(name: str, value: str, detail: str) -> str:
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="detail">{escape(detail)}</div></div>'
    )


def _panel(title: str, hint: str, body: str) -> str:
    return f'<section class="panel"><h2>{escape(title)}</h2><p class="hint">{escape(hint)}</p>{body}</section>'


def _plot(chart: Chart) -> str:
    return f'<div class="chart" id="{escape(chart.key)}" role="img" aria-label="{escape(chart.title)}"></div>'


def _outputs(comparison: Comparison) -> str:
    if len(comparison.outputs) < 2:
        return ""
    return _panel("Outputs", "Each floating output of the model.", html_table("outputs", output_columns(comparison)))


def _layers(comparison: Comparison) -> str:
    if not comparison.rows:
        return ""
    search = '<input type="search" data-filters="layers" placeholder="Filter layers" aria-label="Filter layers">'
    table = html_table("layers", layer_columns(comparison))
    return _panel("All figures", "Click a heading to sort.", search + table)


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    return f'<section class="panel"><h2>Notes</h2><ul>{items}</ul></section>'


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files("fewbit.report").joinpath("assets", name).read_text(encoding="utf-8")
