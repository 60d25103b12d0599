"""One network, four executors: the codes of every layer in torch, ONNX Runtime, OpenVINO and integer arithmetic.

Every operation's codes are compared with integer arithmetic (fixed-point multipliers, rounded once) on the engine's own
inputs, so that a code that differs is counted where it arises and not again behind it. OpenVINO is left out where it is
not installed. ``--pictures`` says how many pictures are compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import _results
import torch

import fewbit
from fewbit import engines
from fewbit.demo.efficientnet import efficientnet_lite0
from fewbit.errors import FewbitError
from fewbit.evaluate import sqnr, top1_agreement
from fewbit.integer.agreement import Agreement, agreement
from fewbit.integer.fixed import FixedPoint
from fewbit.sources import load_data

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-dev.zip"
EVERY = 5
BATCH = 20


@dataclass(frozen=True)
class Row:
    """One executor: operations and codes compared, how many codes differ, the largest difference, the outputs."""

    executor: str
    operations: int
    codes: int
    different: int
    largest: int
    sqnr: float
    agreement: float


def row(name: str, rows: list[Agreement], logits: torch.Tensor, wanted: torch.Tensor) -> Row:
    return Row(
        executor=name,
        operations=len(rows),
        codes=sum(each.values for each in rows),
        different=sum(each.different for each in rows),
        largest=max(each.largest for each in rows),
        sqnr=sqnr(wanted, logits),
        agreement=top1_agreement(wanted, logits),
    )


def measure(pictures: torch.Tensor, count: int) -> list[Row]:
    model = efficientnet_lite0()
    quantized = fewbit.quantize(model, "W8A8", list(pictures[::EVERY].split(BATCH)))
    x = pictures[1::EVERY][:count]
    with torch.no_grad():
        wanted = model(x)
    rows = []
    for name in ("torch", "onnxruntime", "openvino", "reference"):
        if not engines.get(name).installed():
            print(f"{name} is not installed", file=sys.stderr)
            continue
        deployed = fewbit.deploy(quantized, x[:2], name)
        found = agreement(deployed.network, deployed.codes(x))
        rows.append(row(name, found, deployed(x), wanted))
        print(rows[-1], file=sys.stderr)
        worst = max(found, key=lambda each: (each.largest, each.different / each.values))
        print(f"  worst: {worst}", file=sys.stderr)
    double = FixedPoint(deployed.network, "double")
    values = double.values(x)
    found = agreement(deployed.network, {name: values[name] for name in deployed.network.affine})
    rows.append(row("reference, rounded twice", found, double(x)[0], wanted))
    return rows


def markdown(rows: list[Row], pictures: int) -> str:
    columns = ("executor", "operations", "codes", "differ", "share", "largest", "SQNR dB", "as FP32")
    cells = [
        (
            each.executor,
            str(each.operations),
            f"{each.codes:,}",
            f"{each.different:,}",
            f"{each.different / each.codes:.2e}",
            str(each.largest),
            f"{each.sqnr:.2f}",
            f"{each.agreement:.3f}",
        )
        for each in rows
    ]
    return f"""# One network, four executors: EfficientNet-Lite0 in W8A8, {pictures} pictures

The codes of every integer tensor, compared operation by operation with integer arithmetic (int32 accumulators,
fixed-point multipliers, one rounding) on the executor's own inputs; `reference` is that arithmetic itself. Largest:
the largest difference in codes. Logits against FP32 on the same pictures. Made by
`python benchmarks/four_executors.py`.

{_results.markdown_table(columns, cells)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES, help="a folder or .zip of pictures")
    parser.add_argument("--pictures", type=int, default=16)
    options = parser.parse_args()
    if not options.images.exists():
        print(f"skipped: {options.images.name} is not here; name pictures with --images")
        return
    loaded = load_data(options.images, efficientnet_lite0(), batch_size=BATCH)
    pictures = torch.cat([batch for batch in loaded if isinstance(batch, torch.Tensor)])
    rows = measure(pictures, options.pictures)
    _results.write("four_executors", markdown(rows, options.pictures), {"rows": [asdict(each) for each in rows]})


if __name__ == "__main__":
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
