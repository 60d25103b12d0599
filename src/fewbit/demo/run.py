"""The whole of ``fewbit demo``: both halves, one after the other; as tables, or as one JSON document."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from fewbit.calibrate.collect import Progress
from fewbit.demo.packages import require_packages
from fewbit.report.text import json_safe

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fewbit.demo.cnn import CnnResult
    from fewbit.demo.text import TextResult


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured."""

    image_classifier: CnnResult
    text_encoder: TextResult
    threads: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """Plain values for JSON; sizes in bytes, times in seconds, SQNR in dB."""
        document: dict[str, Any] = json_safe(asdict(self))
        return document

    def tables(self) -> list[RenderableType]:
        """Tables for the terminal."""
        from fewbit.demo.tables import cnn_tables, text_tables

        closing = f"{self.seconds:.0f} seconds in all; threads: {self.threads}"
        return [*cnn_tables(self.image_classifier), *text_tables(self.text_encoder), closing]


def measure(quick: bool = False, progress: Progress | None = None) -> DemoResult:
    """Quantize both models and measure what it costs.

    Args:
        quick: Fewer settings and fewer timed runs.
        progress: Called as ``progress(stage, done, total)``.

    Raises:
        MissingExtraError: Packages of fewbit[demo] are not installed; the message names them.
    """
    require_packages()
    from fewbit.demo.cnn import measure_cnn
    from fewbit.demo.text import measure_text

    start = time.perf_counter()
    report = progress or _silent
    classifier = measure_cnn(quick, report)
    encoder = measure_text(quick, report)
    return DemoResult(classifier, encoder, torch.get_num_threads(), time.perf_counter() - start)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""
