"""MiniLM in integers: does the model still find the words similar that people do?

The rows of the table: float; ``W8A8-dynamic`` (weights int8 per channel, activations int8 per token, their
scale taken anew for every token); and ``W4A16-g32`` (weights in 4 bits, groups of 32 with one scale,
activations in float). The error and the time are those of the embeddings of fifty news texts; the scores are
rank correlations with people's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import fewbit
from fewbit.calibrate.collect import Progress
from fewbit.demo.minilm import Encoder, minilm, news_texts, rank_correlation, simlex999, wordsim353
from fewbit.evaluate import cosine, interleaved_times, model_bytes, sqnr

#: Texts in the batch that is timed.
TIMED = 8


@dataclass(frozen=True)
class TextRow:
    """One row of the table.

    Attributes:
        name: What the row is.
        size: Bytes of the model's tensors.
        sqnr: Embeddings against float, dB; None for float itself.
        cosine: Mean cosine similarity of embeddings with float's.
        wordsim: Spearman correlation with WordSim-353.
        simlex: Spearman correlation with SimLex-999.
        seconds: Median time of one text, in batches of ``TIMED``.
    """

    name: str
    size: int
    sqnr: float | None
    cosine: float
    wordsim: float
    simlex: float
    seconds: float


@dataclass(frozen=True)
class TextResult:
    """All rows, float first."""

    parameters: int
    texts: int
    rows: tuple[TextRow, ...]


def schemes(quick: bool = False) -> list[str]:
    """The schemes that are compared."""
    return ["W8A8-dynamic"] if quick else ["W8A8-dynamic", "W4A16-g32"]


def measure_text(quick: bool, progress: Progress) -> TextResult:
    """Quantize under every scheme, run, and measure.

    Args:
        quick: Fewer schemes and fewer timed runs.
        progress: Called as ``progress(stage, done, total)``.
    """
    chosen = schemes(quick)
    steps = 2 * len(chosen) + 2
    progress("text encoder", 0, steps)
    model, encoder, texts = minilm(), Encoder(), news_texts()
    models = {"FP32": model}
    for done, scheme in enumerate(chosen, 1):
        progress("text encoder", done, steps)
        models[scheme] = fewbit.quantize(model, scheme)
    batch = encoder.batch(texts[:TIMED])
    times = interleaved_times([partial(_forward, m, batch) for m in models.values()], repeats=3 if quick else 5)
    reference = encoder.embed(model, texts)
    rows = []
    for done, ((name, each), time) in enumerate(zip(models.items(), times), 1 + len(chosen)):
        progress("text encoder", done, steps)
        rows.append(_row(name, each, encoder, texts, reference, time.median / TIMED))
    progress("text encoder", steps, steps)
    return TextResult(sum(p.numel() for p in model.parameters()), len(texts), tuple(rows))


def _row(
    name: str, model: nn.Module, encoder: Encoder, texts: list[str], reference: torch.Tensor, seconds: float
) -> TextRow:
    found = encoder.embed(model, texts)
    embed = partial(encoder.embed, model)
    return TextRow(
        name=name,
        size=model_bytes(model),
        sqnr=None if name == "FP32" else sqnr(reference, found),
        cosine=cosine(reference, found),
        wordsim=rank_correlation(embed, wordsim353()),
        simlex=rank_correlation(embed, simlex999()),
        seconds=seconds,
    )


def _forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        model(**batch)
