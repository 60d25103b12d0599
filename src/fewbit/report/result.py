"""What `fewbit.compare` found out: plain numbers, and the ways to show them."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.evaluate.layers import LayerCost
from fewbit.evaluate.speed import Timing
from fewbit.evaluate.whole import OutputCost
from fewbit.report.text import json_safe

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class SizePair:
    """Exact bytes of the weights in memory and, where the files are known, on disk."""

    before: int
    after: int
    file_before: int | None = None
    file_after: int | None = None

    @property
    def ratio(self) -> float:
        """How many times smaller the quantized model is in memory."""
        return self.before / max(self.after, 1)


@dataclass(frozen=True)
class TimePair:
    """Seconds for the first batch, medians of interleaved runs."""

    before: Timing
    after: Timing
    threads: int

    @property
    def speedup(self) -> float:
        """How many times faster the quantized model is; below 1 it is slower."""
        return self.before.median / max(self.after.median, 1e-12)


@dataclass(frozen=True)
class Comparison:
    """A quantized model against its float original.

    Attributes:
        rows: One entry a quantized layer, in the model's order.
        outputs: One entry a floating output of the model.
        output_sqnr: dB over all floating outputs together; infinite when they are equal.
        top1: Share of equal top-1 predictions, where an output holds class scores.
        cosine: Mean cosine similarity of the first floating output (of the scores, where there are any).
        size: Exact bytes before and after.
        time: Seconds before and after; None when it was not measured.
        batches: How many batches were run.
        samples: How many samples they held (first dimension of the first output).
        notes: What the quantization had to say, such as layers that it left alone.
    """

    rows: tuple[LayerCost, ...]
    outputs: tuple[OutputCost, ...]
    output_sqnr: float
    top1: float | None
    cosine: float
    size: SizePair
    time: TimePair | None
    batches: int
    samples: int
    notes: tuple[str, ...] = ()

    def table(self) -> Group:
        """Two `rich` tables, one of the whole model and one of its layers; print them with ``rich.print``."""
        from fewbit.report.table import comparison_tables

        return comparison_tables(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers; infinite SQNRs stay ``float("inf")``."""
        result = dataclasses.asdict(self)
        result["size"]["ratio"] = self.size.ratio
        if self.time is not None:
            result["time"]["speedup"] = self.time.speedup
        return result

    def to_json(self) -> str:
        """One JSON document. What JSON has no number for is a string: ``"inf"``, ``"-inf"``, ``"nan"``."""
        return json.dumps(json_safe(self.to_dict()), indent=2)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page with charts and a table; it needs no network.

        Raises:
            MissingExtraError: plotly is not installed (``pip install 'fewbit[report]'``).
            FewbitError: The file cannot be written.
        """
        from fewbit.report.page import write_page

        return write_page(self, Path(path))

    def __rich__(self) -> Group:
        return self.table()

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=240).print(self.table())
        return buffer.getvalue()
