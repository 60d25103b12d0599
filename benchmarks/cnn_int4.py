"""EfficientNet-Lite0 in W4A8 on 500 ImageNet pictures: int4 weights per channel, rounded in four ways.

Calibrated on every fifth picture, measured on all of them and on the others alone, on integers from end to end
(``fewbit.deploy`` in ONNX Runtime where it is installed, else in torch). Rows of earlier runs are kept.

    python benchmarks/cnn_int4.py --images ../shared/data/imagenet-sample-dev.zip
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import _results
import torch

import fewbit
from fewbit import engines
from fewbit.demo.efficientnet import efficientnet_lite0
from fewbit.errors import FewbitError
from fewbit.evaluate import sqnr, top1_agreement
from fewbit.sources import load_data

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-dev.zip"
EVERY = 5
BATCH = 20
NAMES = ("rtn", "gptq", "adaround", "brecq")


@dataclass(frozen=True)
class Row:
    """One algorithm: agreement with FP32 and SQNR on all pictures and on unseen ones, seconds to quantize."""

    algorithm: str
    agreement: float
    sqnr: float
    agreement_unseen: float
    sqnr_unseen: float
    seconds: float


def measure(model: torch.nn.Module, algorithm: str, pictures: torch.Tensor, wanted: torch.Tensor, engine: str) -> Row:
    data = list(pictures[::EVERY].split(BATCH))
    start = time.perf_counter()
    quantized = fewbit.quantize(model, "W4A8", data, algorithm=algorithm)
    seconds = time.perf_counter() - start
    deployed = fewbit.deploy(quantized, data[0], engine)
    found = torch.cat([deployed(batch) for batch in pictures.split(BATCH)])
    unseen = torch.arange(len(pictures)) % EVERY != 0
    return Row(
        algorithm,
        top1_agreement(wanted, found),
        sqnr(wanted, found),
        top1_agreement(wanted[unseen], found[unseen]),
        sqnr(wanted[unseen], found[unseen]),
        seconds,
    )


def earlier() -> dict[str, Row]:
    """The rows of earlier runs, by algorithm."""
    path = _results.RESULTS / "cnn_int4.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["algorithm"]: Row(**row) for row in rows}


def markdown(rows: list[Row], pictures: int, engine: str) -> str:
    columns = ("algorithm", "as FP32", "SQNR dB", "unseen", "unseen dB", "quantize s")
    cells = [
        (
            row.algorithm,
            f"{row.agreement:.3f}",
            f"{row.sqnr:.2f}",
            f"{row.agreement_unseen:.3f}",
            f"{row.sqnr_unseen:.2f}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return f"""# EfficientNet-Lite0 in W4A8 (int4 weights per channel) on {pictures} ImageNet pictures

Reference: the same network in FP32. As FP32: share of pictures with the same top-1 class. Calibrated on every fifth
picture; unseen: the others alone. Run on integers from end to end in {engine}. Made by `python benchmarks/cnn_int4.py`.

{_results.markdown_table(columns, cells)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES, help="a folder or .zip of pictures")
    parser.add_argument("--algorithms", nargs="+", default=list(NAMES), help="others keep their rows")
    options = parser.parse_args()
    if not options.images.exists():
        print(f"skipped: {options.images.name} is not here; name pictures with --images")
        return
    model = efficientnet_lite0()
    loaded = load_data(options.images, model, batch_size=BATCH)
    pictures = torch.cat([batch for batch in loaded if isinstance(batch, torch.Tensor)])
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in pictures.split(BATCH)])
    engine = "onnxruntime" if engines.get("onnxruntime").installed() else "torch"
    for algorithm in options.algorithms:
        made = measure(model, algorithm, pictures, wanted, engine)
        print(made, file=sys.stderr)
        found = {**earlier(), algorithm: made}
        rows = [found[name] for name in NAMES if name in found]
        _results.write("cnn_int4", markdown(rows, len(pictures), engine), {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
