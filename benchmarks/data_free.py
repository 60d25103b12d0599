"""What DFQ's three steps (arXiv 1906.04721) bring to EfficientNet-Lite0: equalization, absorption, analytic correction.

One scale for a whole weight tensor (``W8A8-tensor``), and int4 weights per channel, rounded to nearest; and the same
network with skewed channels: where a projection alone feeds the next expansion, each channel is scaled by 10^N(0, ½)
and scaled back by the reader, which changes nothing in float. Ranges come from 40 pictures, figures from others.

    python benchmarks/data_free.py --images ../shared/data/imagenet-sample-dev.zip

writes ``benchmarks/results/data_free.*`` after each row; rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import _results
import torch
from torch import nn

import fewbit
from fewbit.demo.efficientnet import efficientnet_lite0
from fewbit.evaluate import sqnr, top1_agreement
from fewbit.integer.capture import capture
from fewbit.integer.chains import chains
from fewbit.nn.fold import fold_batch_norm
from fewbit.sources import load_data

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-dev.zip"
CALIBRATE, BATCH = 40, 20
CASES = (
    ("as it is", "W8A8-tensor", "rtn", "none"),
    ("as it is", "W8A8-tensor", "rtn", "analytic"),
    ("skewed", "W8A8-tensor", "rtn", "empirical"),
    ("skewed", "W8A8-tensor", "equalize+rtn", "empirical"),
    ("as it is", "W4A8", "rtn", "none"),
    ("as it is", "W4A8", "rtn", "analytic"),
    ("as it is", "W8A8-tensor", "rtn", "empirical"),
    ("as it is", "W8A8-tensor", "equalize+absorb+rtn", "analytic"),
    ("skewed", "W8A8-tensor", "equalize+absorb+rtn", "analytic"),
    ("as it is", "W8A8-tensor", "equalize+rtn", "empirical"),
    ("as it is", "W4A8", "rtn", "empirical"),
)


def skewed(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """The same function with channels of very different ranges."""
    model, folded = copy.deepcopy(model), copy.deepcopy(model)
    fold_batch_norm(folded)
    generator = torch.Generator().manual_seed(0)
    for chain in chains(capture(folded, (example,)), folded):
        if chain.high != float("inf") or not chain.first.endswith("_project_conv"):
            continue
        norm = model.get_submodule(chain.first.replace("_project_conv", "_bn2"))
        reader = model.get_submodule(chain.second)
        factor = 10 ** (0.5 * torch.randn(norm.num_features, generator=generator))  # type: ignore[operator]
        with torch.no_grad():
            for parameter in (norm.weight, norm.bias):
                parameter.mul_(factor)
            reader.weight.div_(factor.reshape(1, -1, 1, 1))
    return model


def measure(model: nn.Module, case: tuple[str, ...], pictures: torch.Tensor) -> dict[str, Any]:
    """Quantize one way, and compare with float on pictures that calibration did not see."""
    name, recipe, algorithm, correction = case
    data, unseen = list(pictures[:CALIBRATE].split(BATCH)), pictures[CALIBRATE:].split(BATCH)
    made = fewbit.quantize(model, recipe, data, algorithm=algorithm, bias_correction=correction)
    with torch.no_grad():
        wanted, found = (torch.cat([each(batch) for batch in unseen]) for each in (model, made))
    row = {"agreement": top1_agreement(wanted, found), "sqnr": sqnr(wanted, found)}
    return {"network": name, "recipe": recipe, "algorithm": algorithm, "correction": correction, **row}


def write(rows: list[dict[str, Any]], count: int) -> None:
    columns = ("EfficientNet-Lite0", "recipe", "algorithm", "bias correction", "as FP32", "SQNR dB")
    cells = [
        (r["network"], r["recipe"], r["algorithm"], r["correction"], f"{r['agreement']:.3f}", f"{r['sqnr']:.2f}")
        for r in rows
    ]
    text = f"""# Equalization, absorption and analytic bias correction on EfficientNet-Lite0

As FP32: share of {count} pictures with the same top-1 class; activation ranges from {CALIBRATE} others. Skewed:
channels between projections and expansions scaled by 10^N(0, ½) and back, the same function.
Weights are rounded to nearest. Made by `python benchmarks/data_free.py`.

{_results.markdown_table(columns, cells, left=4)}"""
    _results.write("data_free", text, {"rows": rows, "pictures": count})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES, help="a folder or .zip of pictures")
    parser.add_argument("--limit", type=int, default=100, help="pictures in all")
    parser.add_argument("--rows", type=int, default=len(CASES), help="make so many more rows")
    options = parser.parse_args()
    model = efficientnet_lite0()
    loaded = load_data(options.images, model, batch_size=BATCH, limit=options.limit)
    pictures = torch.cat([batch for batch in loaded if isinstance(batch, torch.Tensor)])
    networks = {"as it is": model, "skewed": skewed(model, pictures[:2])}
    path, count = _results.RESULTS / "data_free.json", len(pictures) - CALIBRATE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows: list[dict[str, Any]] = before["rows"] if before.get("pictures") == count else []
    for case in CASES[len(rows) : len(rows) + options.rows]:
        rows.append(measure(networks[case[0]], case, pictures))
        print(rows[-1], file=sys.stderr, flush=True)
        write(rows, count)


if __name__ == "__main__":
    main()
