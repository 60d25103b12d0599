"""``fewbit demo``: both halves, one after the other, as tables or as one JSON document."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from fewbit.calibrate.collect import Progress
from fewbit.demo.packages import require_packages
from fewbit.report.text import json_safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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

        closing = f"{self.seconds:.0f} seconds in all, {self.threads} threads"
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


def run_demo(console: Console, json: bool = False, quick: bool = False) -> dict[str, Any]:
    """Run the demo, show its tables, with progress on stderr.

    Args:
        console: Where the tables go.
        json: Show nothing; the caller prints the document.
        quick: Fewer settings and fewer timed runs.

    Returns:
        The document of :meth:`DemoResult.document`.

    Raises:
        MissingExtraError: Packages of fewbit[demo] are not installed; the message names them.
    """
    with _bars() as progress:
        result = measure(quick, progress)
    if not json:
        for table in result.tables():
            console.print(table)
            console.print()
    return result.document()


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    """Progress bars on stderr, gone when done."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    text, bar = rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn()
    columns = (text, bar, rich_progress.TimeElapsedColumn())
    with rich_progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""
