"""EfficientNet-Lite0 in W8A8 on 500 ImageNet pictures: every calibrator, with and without bias correction.

The float network is the reference. Ranges and bias corrections come from every fifth picture. Agreement of
the top-1 class with float and the logits' SQNR are taken over all pictures, and once more over those that
calibration did not see. The last rows tell the weights' share of the error from the activations'.

    python benchmarks/imagenet_sample.py --images ../shared/data/imagenet-sample-dev.zip

writes ``benchmarks/results/imagenet_sample.md`` and ``.json``. It needs fewbit[demo] and some minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import _results
import torch
from torch import nn

import fewbit
from fewbit import calibrate
from fewbit.demo.efficientnet import efficientnet_lite0
from fewbit.errors import FewbitError
from fewbit.evaluate import sqnr, top1_agreement
from fewbit.recipe import Recipe
from fewbit.sources import load_data

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-dev.zip"
EVERY = 5  # each fifth picture calibrates
BATCH = 25
FLOAT_WEIGHTS = "int16/channel/sym"  # stands for float weights: its rounding lies some 50 dB below int8's


@dataclass(frozen=True)
class Setting:
    """One row of the table: what is quantized, and how."""

    name: str
    recipe: Recipe
    calibrator: str
    bias_correction: bool


@dataclass(frozen=True)
class Row:
    """What a setting costs: shares of pictures, dB, seconds."""

    name: str
    calibrator: str
    bias_correction: bool
    agreement: float
    sqnr: float
    agreement_unseen: float
    sqnr_unseen: float
    quantize_seconds: float


def settings(calibrators: Sequence[str]) -> Iterator[Setting]:
    for calibrator in calibrators:
        for correct in (True, False):
            yield Setting("W8A8", Recipe("W8A8"), calibrator, correct)
    for correct in (True, False):
        yield Setting("weights only", Recipe("W8A16"), "none", correct)
    yield Setting("activations only", Recipe("W8A8", weights=FLOAT_WEIGHTS), "mse", False)


def logits_of(model: nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def measure(model: nn.Module, setting: Setting, batches: list[torch.Tensor], reference: torch.Tensor) -> Row:
    pictures = torch.cat(batches)
    data = list(torch.split(pictures[::EVERY], BATCH))
    unseen = torch.arange(len(pictures)) % EVERY != 0
    start = time.perf_counter()
    quantized = fewbit.quantize(
        model,
        setting.recipe,
        data=data,
        calibrator=None if setting.calibrator == "none" else setting.calibrator,
        bias_correction=setting.bias_correction,
    )
    seconds = time.perf_counter() - start
    found = logits_of(quantized, batches)
    return Row(
        name=setting.name,
        calibrator=setting.calibrator,
        bias_correction=setting.bias_correction,
        agreement=top1_agreement(reference, found),
        sqnr=sqnr(reference, found),
        agreement_unseen=top1_agreement(reference[unseen], found[unseen]),
        sqnr_unseen=sqnr(reference[unseen], found[unseen]),
        quantize_seconds=seconds,
    )


COLUMNS = ("", "calibrator", "bias correction", "as FP32", "SQNR dB", "unseen", "unseen dB", "quantize s")


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.calibrator,
        "yes" if row.bias_correction else "no",
        f"{row.agreement:.3f}",
        f"{row.sqnr:.2f}",
        f"{row.agreement_unseen:.3f}",
        f"{row.sqnr_unseen:.2f}",
        f"{row.quantize_seconds:.1f}",
    )


def markdown(rows: Sequence[Row], pictures: int) -> str:
    return f"""# EfficientNet-Lite0 in W8A8 on {pictures} ImageNet pictures

Reference: the same network in FP32. As FP32: share of pictures with the same top-1 class. Calibrated on every
fifth picture, measured on all; unseen: on the others alone. "activations only" keeps the weights in int16.
Made by `python benchmarks/imagenet_sample.py`.

{_results.markdown_table(COLUMNS, [cells(row) for row in rows], left=3)}"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder or .zip of pictures")
    parser.add_argument("--limit", type=int, help="only so many pictures, evenly spaced; prints, writes nothing")
    parser.add_argument("--calibrators", nargs="+", help="only these; prints, writes nothing")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.images is None and not IMAGES.exists():
        print(f"skipped: {IMAGES.name} is not here; name pictures with --images")
        return
    model = efficientnet_lite0()
    loaded = load_data(options.images or IMAGES, model, batch_size=BATCH, limit=options.limit)
    batches = [batch for batch in loaded if isinstance(batch, torch.Tensor)]
    reference = logits_of(model, batches)
    rows = []
    for setting in settings(options.calibrators or calibrate.names()):
        rows.append(measure(model, setting, batches, reference))
        print("  ".join(cells(rows[-1])), file=sys.stderr)
    text = markdown(rows, len(reference))
    if options.limit or options.calibrators:
        print(text)
        return
    _results.write("imagenet_sample", text, {"pictures": len(reference), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
