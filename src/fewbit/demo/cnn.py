"""EfficientNet-Lite0 in integers: four ways to choose the activations' ranges, and what two shortcuts cost.

The rows of the table: float; ``W8A8`` (weights int8 per channel, activations uint8 per tensor with a zero
point) with ranges from min-max, percentile, mean squared error and Kullback-Leibler divergence; then one
scale for all of a layer's weights, and activations without a zero point. Ranges come from every second
picture, whose labels are not used; figures are over all pictures, and the error once more over those that
calibration did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import fewbit
from fewbit.calibrate.collect import Progress
from fewbit.demo.efficientnet import Pictures, class_names, efficientnet_lite0, labelled_pictures
from fewbit.evaluate import interleaved_times, model_bytes, sqnr, top1_agreement
from fewbit.recipe import Recipe

#: The rows of this name are those whose predictions are shown.
SHOWN = "INT8 mse"

#: Pictures in the batch that is timed beside the single picture.
TOGETHER = 8


@dataclass(frozen=True)
class Variant:
    """One way to quantize the network."""

    name: str
    recipe: Recipe
    calibrator: str = "mse"


@dataclass(frozen=True)
class CnnRow:
    """One row of the table.

    Attributes:
        name: What the row is.
        size: Bytes of the model's tensors.
        sqnr: Logits against float, dB, over all pictures; None for float itself.
        sqnr_unseen: The same over the pictures that calibration did not see.
        agreement: Share of pictures with the same top-1 class as float.
        accuracy: Share of pictures with the right top-1 class.
        seconds: Median time of one picture alone.
        seconds_together: Median time a picture when ``TOGETHER`` are run as one batch.
        predictions: The top-1 classes, by name.
    """

    name: str
    size: int
    sqnr: float | None
    sqnr_unseen: float | None
    agreement: float
    accuracy: float
    seconds: float
    seconds_together: float
    predictions: tuple[str, ...]


@dataclass(frozen=True)
class CnnResult:
    """All rows, float first; and the pictures' names and classes."""

    parameters: int
    calibrated_on: int
    files: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[CnnRow, ...]


def variants(quick: bool = False) -> list[Variant]:
    """The ways that are compared; two when it has to be quick."""
    plain = Recipe("W8A8")
    if quick:
        return [Variant("INT8 minmax", plain, "minmax"), Variant(SHOWN, plain)]
    calibrators = ("minmax", "percentile", "mse", "entropy")
    return [
        *(Variant(f"INT8 {calibrator}", plain, calibrator) for calibrator in calibrators),
        Variant("INT8 mse, tensor weights", Recipe("W8A8", weights="int8/tensor/sym")),
        Variant("INT8 mse, sym activations", Recipe("W8A8", activations="int8/tensor/sym")),
    ]


def measure_cnn(quick: bool, progress: Progress) -> CnnResult:
    """Quantize in every way, run, and measure.

    Args:
        quick: Fewer ways and fewer timed runs.
        progress: Called as ``progress(stage, done, total)``.
    """
    chosen = variants(quick)
    steps = len(chosen) + 2
    progress("image classifier", 0, steps)
    model, pictures = efficientnet_lite0(), labelled_pictures()
    models = [model]
    for done, variant in enumerate(chosen, 1):
        progress("image classifier", done, steps)
        data = [pictures.inputs[::2]]
        models.append(fewbit.quantize(model, variant.recipe, data=data, calibrator=variant.calibrator))
    progress("image classifier", steps - 1, steps)
    rows = _rows(["FP32", *(v.name for v in chosen)], models, pictures, repeats=5 if quick else 9)
    progress("image classifier", steps, steps)
    names = class_names()
    labels = tuple(names[int(label)] for label in pictures.labels)
    parameters = sum(p.numel() for p in model.parameters())
    return CnnResult(parameters, len(pictures.files[::2]), pictures.files, labels, rows)


def _rows(names: list[str], models: Sequence[nn.Module], pictures: Pictures, repeats: int) -> tuple[CnnRow, ...]:
    classes = class_names()
    alone, together = (
        interleaved_times([partial(forward, model, pictures.inputs[:count]) for model in models], repeats=repeats)
        for count in (1, TOGETHER)
    )
    logits = [forward(model, pictures.inputs) for model in models]
    reference = logits[0]
    rows = []
    for name, model, found, one, many in zip(names, models, logits, alone, together):
        top1 = found.argmax(dim=1)
        is_float = found is reference
        rows.append(
            CnnRow(
                name=name,
                size=model_bytes(model),
                sqnr=None if is_float else sqnr(reference, found),
                sqnr_unseen=None if is_float else sqnr(reference[1::2], found[1::2]),
                agreement=top1_agreement(reference, found),
                accuracy=float((top1 == pictures.labels).double().mean()),
                seconds=one.median,
                seconds_together=many.median / TOGETHER,
                predictions=tuple(classes[int(index)] for index in top1),
            )
        )
    return tuple(rows)


def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The logits [N, 1000] of pictures [N, 3, H, W]."""
    with torch.no_grad():
        logits: torch.Tensor = model(inputs)
    return logits
