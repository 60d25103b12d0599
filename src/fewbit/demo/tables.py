"""The demo's results as tables for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from fewbit.demo.cnn import SHOWN, TOGETHER, CnnResult, CnnRow
from fewbit.demo.text import TextResult
from fewbit.report.table import plain_table
from fewbit.report.text import bytes_text, decibels_text, percent_text, seconds_text, times_text


def cnn_tables(result: CnnResult) -> list[RenderableType]:
    """What every way of quantizing the network costs, and what the network sees on each picture."""
    return [_cnn_costs(result), _cnn_predictions(result)]


def text_tables(result: TextResult) -> list[RenderableType]:
    """What every scheme costs the encoder."""
    title = f"MiniLM-L6, {result.parameters / 1e6:.1f} M parameters: words as similar as people find them?"
    headings = ("size", "smaller", "SQNR dB", "cosine", "WordSim-353", "SimLex-999", "time a text")
    table = plain_table(title, "", *headings)
    first = result.rows[0]
    for row in result.rows:
        table.add_row(
            row.name,
            bytes_text(row.size),
            times_text(first.size / row.size),
            decibels_text(row.sqnr),
            f"{row.cosine:.4f}",
            f"{row.wordsim:.3f}",
            f"{row.simlex:.3f}",
            _time(row.seconds, first.seconds),
        )
    table.caption = (
        f"SQNR and cosine: embeddings of {result.texts} news texts against float. WordSim, SimLex: "
        "Spearman's correlation with people's scores. Time: median of interleaved runs, batches of 8."
    )
    return [table]


def _cnn_costs(result: CnnResult) -> Table:
    millions = f"{result.parameters / 1e6:.2f} M"
    title = f"EfficientNet-Lite0, {millions} parameters, {len(result.files)} ImageNet pictures"
    headings = (
        "size",
        "smaller",
        "SQNR dB",
        "unseen dB",
        "as FP32",
        "top-1",
        "one alone",
        f"each of {TOGETHER}",
    )
    table = plain_table(title, "", *headings)
    first = result.rows[0]
    for row in result.rows:
        table.add_row(
            row.name,
            bytes_text(row.size),
            times_text(first.size / row.size),
            decibels_text(row.sqnr),
            decibels_text(row.sqnr_unseen),
            percent_text(row.agreement),
            percent_text(row.accuracy),
            _time(row.seconds, first.seconds),
            _time(row.seconds_together, first.seconds_together),
        )
    table.caption = (
        f"INT8: weights and activations. Ranges from {result.calibrated_on} of the pictures; unseen: the "
        "others. SQNR: logits against float. Times: of a picture, medians of interleaved runs, batches of 1 "
        f"and {TOGETHER}."
    )
    return table


def _cnn_predictions(result: CnnResult) -> Table:
    """Picture by picture; ``=`` where a prediction is that of float."""
    table = Table(
        title="what the network sees", box=None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for heading in ("picture shows", "FP32", SHOWN, "other rows that differ from FP32"):
        table.add_column(heading, overflow="fold")
    float_row, shown = result.rows[0], next(row for row in result.rows if row.name == SHOWN)
    others = [row for row in result.rows[1:] if row is not shown]
    for i, label in enumerate(result.labels):
        seen = float_row.predictions[i]
        told = seen if seen == label else f"[red]{seen}[/red]"
        same = "=" if shown.predictions[i] == seen else shown.predictions[i]
        table.add_row(label, told, same, "; ".join(_differing(others, i, seen)))
    return table


def _time(seconds: float, before: float) -> str:
    """A time, and the speed it means against `before`."""
    return f"{seconds_text(seconds)} {times_text(before / seconds)}"


def _differing(rows: list[CnnRow], picture: int, seen: str) -> list[str]:
    return [f"{row.predictions[picture]} ({row.name})" for row in rows if row.predictions[picture] != seen]
