"""The page: complete in itself, safe against names, and written whole or not at all."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fewbit.errors import FewbitError, MissingExtraError
from fewbit.report.charts import charts
from fewbit.report.page import render_page, write_page
from fewbit.report.result import Comparison

plotly_offline = pytest.importorskip("plotly.offline")


@pytest.fixture
def page(comparison: Comparison) -> str:
    return render_page(comparison)


def without_plotly(page: str) -> str:
    return page.replace(plotly_offline.get_plotlyjs(), "")


def test_plotly_is_inside_and_nothing_is_fetched(page: str) -> None:
    assert plotly_offline.get_plotlyjs() in page
    own = without_plotly(page)
    assert len(own) < 60_000
    assert not re.search(r"""(src|href)\s*=|https?://|@import|url\(""", own)
    assert "default-src 'none'" in own


def test_the_charts_data_is_there_and_cannot_end_its_script(page: str, comparison: Comparison) -> None:
    own = without_plotly(page)
    match = re.search(r'<script type="application/json" id="charts-data">(.*?)</script>', own, re.DOTALL)
    assert match is not None
    data = json.loads(match[1])
    assert data == {chart.key: {"data": chart.data, "layout": chart.layout} for chart in charts(comparison)}
    for chart in charts(comparison):
        assert f'id="{chart.key}"' in own
        assert own.count(chart.title) >= 1


def test_names_and_notes_are_text(page: str) -> None:
    own = without_plotly(page)
    assert "</script><b>" not in own
    assert "&lt;/script&gt;&lt;b&gt;[red]x[/red]&amp;" in own
    assert "batch norm &lt;i&gt;folded&lt;/i&gt;" in own
    assert own.count("<script") == own.count("</script>") == 3


def test_cards_tell_the_most_important(page: str) -> None:
    for told in ("3.80×", "25.0 dB", "98.4 %", "3.00×", "17.7 MiB → 4.67 MiB", "12.3 ms → 4.10 ms", "4.72 MiB on disk"):
        assert told in page
    assert "3 quantized layers, measured on 100 samples in 10 batches" in page


def test_every_placeholder_is_filled(page: str, bare: Comparison) -> None:
    for text in (without_plotly(page), without_plotly(render_page(bare))):
        assert not re.search(
            r"\$(title|lead|style|cards|outputs|notes|charts|table|data|plotly|script|version)\b", text
        )


def test_colours_of_charts_are_those_of_the_theme(page: str, comparison: Comparison) -> None:
    used = {match for chart in charts(comparison) for match in re.findall(r'"color": "(\w+)"', json.dumps(chart.data))}
    style = without_plotly(page)
    for colour in used:
        assert style.count(f"--{colour}:") == 2, "light and dark"
    assert "prefers-color-scheme: dark" in style


def test_a_bare_comparison_has_cosine_and_no_empty_panels(bare: Comparison) -> None:
    own = without_plotly(render_page(bare))
    assert "Cosine" in own
    assert ">exact<" in own
    assert "All figures" not in own
    assert "Speed" not in own
    assert "Notes" not in own


def test_without_plotly_the_extra_is_named(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def fail(name: str) -> Any:
        if name.startswith("plotly"):
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real_import(name)

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(MissingExtraError, match=r"fewbit\[report\]"):
        write_page(comparison, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_leaves_nothing(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(FewbitError, match="taken"):
        write_page(comparison, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_earlier_page_is_replaced_whole(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    assert write_page(comparison, path) == path
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
