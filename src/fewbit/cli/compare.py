"""``fewbit compare``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from fewbit.cli.options import DataOptions
from fewbit.cli.session import Session, check_output, check_page
from fewbit.errors import FewbitError, require

if TYPE_CHECKING:
    from torch import nn


def _load_quantized(source: str, original: nn.Module) -> nn.Module:
    """The quantized model; the original stands in for an architecture that its folder could not hold."""
    from fewbit.formats import load
    from fewbit.sources import load_model

    try:
        return load_model(source).model
    except FewbitError:
        with contextlib.suppress(FewbitError):
            return load(source, original)
        raise


def run_compare(
    session: Session,
    source: str,
    quantized: str,
    options: DataOptions,
    *,
    html: Path | None,
    overwrite: bool,
    repeats: int,
) -> None:
    """Compare a quantized model with its original.

    Raises:
        FewbitError: A model or the data cannot be used, or the page cannot be written.
    """
    if html is not None:
        check_page(html, source, quantized, options.path)
        check_output(html, folder=False, overwrite=overwrite)
        require("plotly", "report")
    if options.path is None:
        raise FewbitError("compare needs data to run both models on; name a file or folder with --data")
    options.check()
    from fewbit.nn import quantized_layers
    from fewbit.report.comparison import compare
    from fewbit.sources import load_model

    with session.stage("load the original"):
        original = load_model(source)
    with session.stage("load the quantized model"):
        changed = _load_quantized(quantized, original.model)
    if not quantized_layers(changed):
        raise FewbitError(f"{quantized} has no quantized layer; make one with fewbit quantize")
    batches = options.load(original)
    files = (Path(source) if original.kind != "factory" else None, Path(quantized))
    comparison = compare(original.model, changed, batches, repeats=repeats, files=files, progress=session.progress)
    document = {"source": source, "quantized": quantized, "data": str(options.path), **comparison.to_dict()}
    shown = [comparison.table()]
    if html is not None:
        with session.stage("write the page"):
            document["html"] = str(comparison.to_html(html))
        session.result(document, *shown, f"the page is {html}")
        return
    session.result(document, *shown)
