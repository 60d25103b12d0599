"""Loss and learned steps over training, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewbit.atomic import write_text
from fewbit.errors import require

if TYPE_CHECKING:
    from _training import History


def write_plots(histories: dict[str, History], path: Path) -> None:
    """One chart of all losses, and one of each quantized run's steps relative to where they started."""
    graph, offline = require("plotly.graph_objects", "report"), require("plotly.offline", "report")
    figures = [graph.Figure(layout={"title": "Training loss", "xaxis": {"title": "step"}})]
    histories = {name: history for name, history in histories.items() if history.steps}
    for name, history in histories.items():
        figures[0].add_scatter(x=history.steps, y=history.loss, name=name, mode="lines")
    for name, history in histories.items():
        if not history.scales:
            continue
        title = f"{name}: learned steps, relative to post-training quantization"
        figure = graph.Figure(layout={"title": title, "xaxis": {"title": "step"}, "yaxis": {"type": "log"}})
        for key, values in history.scales.items():
            figure.add_scatter(x=history.steps, y=[v / (values[0] or 1.0) for v in values], name=key, mode="lines")
        figures.append(figure)
    parts = [offline.plot(figure, output_type="div", include_plotlyjs=n == 0) for n, figure in enumerate(figures)]
    body = "\n".join(parts)
    write_text(path, f"<!doctype html>\n<meta charset='utf-8'>\n<title>Training</title>\n{body}\n")
