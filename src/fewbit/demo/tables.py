"""The demo's results as tables for the terminal; they fit into 80 columns."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from fewbit.demo.cnn import SHOWN, TOGETHER, CnnResult, CnnRow
from fewbit.demo.text import TIMED, TextResult
from fewbit.report.table import plain_table
from fewbit.report.text import decibels_text, times_text


def cnn_tables(result: CnnResult) -> list[RenderableType]:
    """What every way of quantizing the network costs, and what the network sees on each picture."""
    return [_cnn_costs(result), _cnn_predictions(result)]


def text_tables(result: TextResult) -> list[RenderableType]:
    """What every scheme costs the encoder."""
    title = f"MiniLM-L6, {result.parameters / 1e6:.1f} M parameters: words as similar as people find them?"
    headings = ("MiB", "times\nless", "SQNR\ndB", "cosine", "WordSim\n353", "SimLex\n999", "ms\na text")
    table = _narrow(title, headings)
    first = result.rows[0]
    for row in result.rows:
        table.add_row(
            row.name,
            *_size(row.size, first.size),
            decibels_text(row.sqnr),
            f"{row.cosine:.4f}",
            f"{row.wordsim:.3f}",
            f"{row.simlex:.3f}",
            _time(row.seconds, first.seconds),
        )
    table.caption = (
        f"SQNR and cosine: embeddings of {result.texts} news texts against float. WordSim, SimLex: Spearman's "
        "correlation with people's scores. Time of a text: median of interleaved runs in batches of "
        f"{TIMED}, and the speed-up."
    )
    return [table]


def _cnn_costs(result: CnnResult) -> Table:
    millions = f"{result.parameters / 1e6:.2f} M"
    title = f"EfficientNet-Lite0 ({millions} weights) in INT8, {len(result.files)} ImageNet pictures"
    headings = ("MiB", "times\nless", "SQNR\ndB", "as\nFP32", "top-1", "ms\nalone", f"ms\nof {TOGETHER}")
    table = _narrow(title, headings)
    first = result.rows[0]
    for row in result.rows:
        table.add_row(
            _short(row),
            *_size(row.size, first.size),
            decibels_text(row.sqnr),
            f"{row.agreement:.0%}",
            f"{row.accuracy:.0%}",
            _time(row.seconds, first.seconds),
            _time(row.seconds_together, first.seconds_together),
        )
    shown = _shown(result)
    table.caption = (
        f"INT8: weights and activations, ranges chosen on {result.calibrated_on} of the pictures. SQNR: logits "
        f"against float; {SHOWN} has {decibels_text(shown.sqnr_unseen)} dB on the pictures not chosen on. Time of "
        f"a picture alone and in batches of {TOGETHER}: medians of interleaved runs, and the speed-up."
    )
    return table


def _cnn_predictions(result: CnnResult) -> Table:
    """Picture by picture; ``=`` where a prediction is that of float."""
    table = Table(title="what the network sees", box=None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("picture shows", "FP32", SHOWN, "other rows that differ from FP32"):
        table.add_column(heading, overflow="fold")
    float_row, shown = result.rows[0], _shown(result)
    others = [row for row in result.rows[1:] if row is not shown]
    for i, label in enumerate(result.labels):
        seen = float_row.predictions[i]
        told = seen if seen == label else f"[red]{seen}[/red]"
        same = "=" if shown.predictions[i] == seen else shown.predictions[i]
        table.add_row(label, told, same, _differing(others, i, seen))
    return table


def _shown(result: CnnResult) -> CnnRow:
    return next(row for row in result.rows if row.name == SHOWN)


def _narrow(title: str, headings: tuple[str, ...]) -> Table:
    """A table whose first column never folds, with little between the columns."""
    table = plain_table(title, "", *headings)
    table.columns[0].no_wrap = True
    table.padding = (0, 1, 0, 0)
    return table


def _size(size: int, before: int) -> tuple[str, str]:
    """Mebibytes, and how many times smaller than `before`."""
    return f"{size / 2**20:.2f}", times_text(before / size)


def _time(seconds: float, before: float) -> str:
    """Milliseconds, and the speed-up against `before`."""
    return f"{seconds * 1000:.1f} {times_text(before / seconds)}"


def _differing(rows: list[CnnRow], picture: int, seen: str) -> str:
    """What rows saw that was not `seen`, and which rows: ``"airship (minmax, entropy); drum (mse)"``."""
    by_class: dict[str, list[str]] = {}
    for row in rows:
        if row.predictions[picture] != seen:
            by_class.setdefault(row.predictions[picture], []).append(_short(row))
    return "; ".join(f"{name} ({', '.join(those)})" for name, those in by_class.items())


def _short(row: CnnRow) -> str:
    return row.name.removeprefix("INT8 ")
