"""Quantization-aware training of a small CNN: in float, then at 8, 4, 3 and 2 bits, each beside post-training
quantization by the same recipe.

    python examples/qat_cifar10.py --train TRAIN --test TEST --out runs/resnet20

TRAIN and TEST are folders or .zip files laid out as CLASS/picture.jpg; any pictures will do. First and last layer keep
8 bits, as in the papers. Every run keeps its state in the output folder and goes on from there when it was killed.
The result is a table, ``results.json`` and ``training.html`` with the losses and learned steps (fewbit[report]).
Needs fewbit[images,report].
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _pictures import NETWORKS, Pictures, as_input, load_pictures
from _plots import write_plots
from _training import History, Schedule, scores, train
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.evaluate import top1_agreement
from fewbit.recipe import Recipe, Rule
from fewbit.train import Distillation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CALIBRATE = 512


@dataclass(frozen=True)
class Row:
    """Top-1 in percent, and the share of predictions on which the trained and the converted model agree."""

    name: str
    steps: int
    post_training: float
    trained: float | None
    converted: float | None
    agreement: float | None


def recipe(bits: int) -> Recipe:
    """Weights and activations of ``bits`` bits, first and last layer at 8."""
    return Recipe(f"W{bits}A{bits}", rules=(Rule("@first", scheme="W8A8"), Rule("@last", scheme="W8A8")))


def measure(
    bits: int, model: nn.Module, options: argparse.Namespace, data: tuple[Pictures, Pictures]
) -> tuple[Row, History]:
    """Post-training quantization, training, conversion."""
    pictures, test = data
    chosen = torch.randperm(len(pictures.labels), generator=torch.Generator().manual_seed(0))[:CALIBRATE]
    batches = [as_input(part) for part in pictures.pixels[chosen].split(64)]
    name, steps = f"W{bits}A{bits}", options.steps.get(bits, 0)
    post = scores(fewbit.quantize(model, recipe(bits), batches), test)
    print(f"{name} post-training: {post:.2f}", file=sys.stderr)
    if not steps:
        return Row(name, 0, post, None, None, None), History()
    prepared = fewbit.prepare_qat(model, recipe(bits), batches, freeze_norms_after=int(options.norms_move * steps))
    schedule = Schedule(steps, options.rate, weight_decay=1e-4 if bits > 2 else 5e-5, smoothing=0.0, warmup=0.1)
    with Distillation(prepared, model) as distill:
        history = train(name, prepared, pictures, schedule, options.out / f"{name}.pt", distill)
    converted = fewbit.convert(prepared)
    prepared.eval()
    with torch.no_grad():
        logits = [torch.cat([m(x) for x, _ in test.batches(250)]) for m in (prepared, converted)]
    trained, deployed = (100 * float((found.argmax(1) == test.labels).float().mean()) for found in logits)
    row = Row(name, steps, post, trained, deployed, top1_agreement(*logits))
    print(f"{name} trained: {trained:.2f}, converted: {deployed:.2f}", file=sys.stderr)
    fewbit.save(converted, options.out / name)
    return row, history


def float_trained_on(model: nn.Module, options: argparse.Namespace, pictures: Pictures, test: Pictures) -> float | None:
    """What as many steps of the same training bring to the float network: the control of the quantized runs."""
    if not options.control:
        return None
    further, teacher = copy.deepcopy(model), copy.deepcopy(model)
    schedule = Schedule(options.control, options.rate, weight_decay=1e-4, smoothing=0.0, warmup=0.1)
    with Distillation(further, teacher) as distill:
        train("float, trained on", further, pictures, schedule, options.out / "float-on.pt", distill)
    score = scores(further.eval(), test)
    print(f"float, trained on for {options.control} steps: {score:.2f}", file=sys.stderr)
    return score


def table(float_score: float, rows: list[Row]) -> str:
    lines = ["| | steps | post-training | trained | converted | to float | agree |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        best = row.post_training if row.converted is None else row.converted
        after = (
            ["", "", ""]
            if row.trained is None
            else [f"{row.trained:.2f}", f"{row.converted:.2f}", f"{row.agreement:.4f}"]
        )
        cells = [
            row.name,
            str(row.steps),
            f"{row.post_training:.2f}",
            *after[:2],
            f"{best - float_score:+.2f}",
            after[2],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps_by_width(text: str) -> dict[int, int]:
    """``4:600,2:2000`` as a dictionary."""
    try:
        return {int(bits): int(steps) for bits, steps in (part.split(":") for part in text.split(",") if part)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4:600,2:2000") from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=Path, default=SHARED / "cifar10-train.zip", help="pictures to train on")
    parser.add_argument("--test", type=Path, default=SHARED / "cifar10-test-dev.zip", help="pictures to test on")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of states and results")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--float-steps", type=int, default=390 * 24, help="training steps in float")
    parser.add_argument("--float-rate", type=float, default=0.4, help="highest learning rate in float")
    parser.add_argument("--steps", type=steps_by_width, default={4: 780, 3: 1170, 2: 2340}, help="width:steps,…")
    parser.add_argument("--control", type=int, default=0, help="also train the float network on for so many steps")
    parser.add_argument("--rate", type=float, default=0.02, help="highest learning rate of quantized training")
    # Few bits shift the statistics at first; without batch norm's own scaling a high learning rate diverges.
    parser.add_argument("--norms-move", type=float, default=0.6, help="share of the steps in which batch norm moves")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 4, 3, 2])
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(options.train, options.size)
    test = load_pictures(options.test, options.size, pictures.classes)
    torch.manual_seed(0)
    model = NETWORKS[options.network](len(pictures.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    schedule = Schedule(options.float_steps, options.float_rate, small=0.6)
    histories = {"float": train("float", model, pictures, schedule, options.out / "float.pt")}
    float_score = scores(model.eval(), test)
    print(f"float: {float_score:.2f}", file=sys.stderr)
    further = float_trained_on(model, options, pictures, test)
    rows = []
    for bits in options.widths:
        row, histories[f"W{bits}A{bits}"] = measure(bits, model, options, (pictures, test))
        rows.append(row)
        found = {
            "network": options.network,
            "float": float_score,
            "float_trained_on": further,
            "rows": [asdict(row) for row in rows],
        }
        (options.out / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        write_plots(histories, options.out / "training.html")
    print(f"float: {float_score:.2f} top-1\n\n{table(float_score, rows)}")


if __name__ == "__main__":
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
