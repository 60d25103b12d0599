"""HTML tables: what is shown, what is sorted by, and nothing that escapes its cell."""

from __future__ import annotations

from html.parser import HTMLParser

from fewbit.report.html_table import Column, html_table, layer_columns, output_columns
from fewbit.report.result import Comparison


class Cells(HTMLParser):
    """Texts of headings and cells, and the cells' sort keys; fails on anything that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.heads: list[str] = []
        self.cells: list[str] = []
        self.keys: list[str | None] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")
            self.keys.append(dict(attrs)["data-sort"])
        if tag == "th":
            self.heads.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data
        elif "th" in self.open:
            self.heads[-1] += data


def test_cells_carry_text_and_key() -> None:
    columns = [
        Column("name", ["b", "<a>\"'&"], is_number=False),
        Column("size", [2048, None], "{} B".format),
        Column("dB", [float("inf"), float("-inf")], "{:.1f}".format),
    ]
    table = Cells(html_table("t", columns))
    assert table.heads == ["name", "size", "dB"]
    assert table.cells == ["b", "2048 B", "inf", "<a>\"'&", "–", "-inf"]
    assert table.keys == ["b", "2048", "Infinity", "<a>\"'&", "", "-Infinity"]


def test_every_figure_of_every_layer(comparison: Comparison) -> None:
    table = Cells(html_table("layers", layer_columns(comparison)))
    assert len(table.cells) == 3 * len(table.heads)
    first = dict(zip(table.heads, table.cells))
    assert first["layer"] == "features.0.conv"
    assert (first["#"], first["type"], first["parameters"]) == ("1", "Conv2d", "224")
    assert (first["weight SQNR"], first["output SQNR"], first["alone"]) == ("43.2", "31.9", "35.5")
    assert (first["weight rounding MSE"], first["weight clipped"]) == ("2e-06", "0.1 %")
    assert (first["input vs theory"], first["before"], first["after"]) == ("0.610", "896 B", "288 B")
    second = dict(zip(table.heads, table.cells[len(table.heads) :]))
    assert (second["weight SQNR"], second["output SQNR"], second["input rounding MSE"]) == ("exact", "–", "–")


def test_outputs(comparison: Comparison) -> None:
    table = Cells(html_table("outputs", output_columns(comparison)))
    assert table.cells == ["logits", "24.6", "0.998120", "98.4 %", "hidden", "exact", "1.000000", "–"]
