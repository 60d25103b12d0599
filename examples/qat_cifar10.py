"""Quantization-aware training of a small CNN: in float, then at 8, 4, 3 and 2 bits, each beside post-training
quantization by the same recipe.

    python examples/qat_cifar10.py --train TRAIN --test TEST --out runs/resnet20

TRAIN and TEST are folders or .zip files laid out as CLASS/picture.jpg; any pictures will do. First and last layer keep
8 bits, as in the papers. States and measured values are kept in the output folder: the same command goes on where it
was killed, and more widths can be added; other settings for what is there already are refused. The result is a table,
``results.json``, ``training.html`` with the losses and learned steps, and a folder per trained width for
``fewbit.load``. Needs fewbit[images,report].
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _agreement import agreement
from _command import command, existing, folder, make_folder, rate, share, whole
from _journal import Journal, Settings, fingerprint
from _picture_training import PictureSchedule, train_on_pictures
from _pictures import NETWORKS, Pictures, accuracy, as_input, load_pictures
from _plots import write_plots
from _training import Job, check_state, kept_history, load_weights, read_state
from torch import Tensor, nn

import fewbit
from fewbit.atomic import write_text
from fewbit.engines import Deployed
from fewbit.errors import require
from fewbit.recipe import Recipe, Rule
from fewbit.train import Distillation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CALIBRATE = 512
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
# The closer to float a width is, the less it has to move: at the rate that 2 bits need, 4 bits lose what they had.
RATES = {**dict.fromkeys(WIDTHS, 0.004), 3: 0.01, 2: 0.02, 1: 0.02}


@dataclass(frozen=True)
class Row:
    """Top-1 in percent; and, of the trained and the converted model, the share of predictions on which they agree, and
    how many of all values that their layers gave are not the same; ``integers``: as a network of integers from end to
    end, where what lies between the layers is rounded to 8 bits, too."""

    name: str
    steps: int
    post_training: float
    trained: float | None = None
    converted: float | None = None
    agreement: float | None = None
    values: int | None = None
    different: int | None = None
    integers: float | None = None


@dataclass(frozen=True)
class Run:
    """What one command works on. Every result is tied to ``common``, and to more of its own."""

    options: argparse.Namespace
    pictures: Pictures
    test: Pictures
    journal: Journal
    common: Settings

    def measured_on(self, settings: Settings) -> Settings:
        """What a score is tied to, of something made with ``settings``."""
        return {**settings, "the test pictures": self.test.fingerprint()}


def recipe(bits: int) -> Recipe:
    """Weights and activations of ``bits`` bits, first and last layer at 8."""
    return Recipe(f"W{bits}A{bits}", rules=(Rule("@first", scheme="W8A8"), Rule("@last", scheme="W8A8")))


def score(model: nn.Module | Deployed, pictures: Pictures) -> float:
    """Top-1 accuracy in percent."""
    return 100 * accuracy(model, pictures)


# --- in float -----------------------------------------------------------------------------------


def float_network(run: Run) -> nn.Module:
    """The network of ``--network``, trained in float."""
    options = run.options
    torch.manual_seed(0)
    model = NETWORKS[options.network](len(run.pictures.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    started = "none"
    if options.start:
        state = read_state(options.start, "name the float.pt of an earlier run with --start")
        load_weights(model, state["model"], options.start)
        started = fingerprint(model.state_dict())
    settings = {
        **run.common,
        "--float-steps": options.float_steps,
        "--float-rate": options.float_rate,
        "--small": options.small,
        "the network of --start": started,
    }
    schedule = PictureSchedule(
        options.float_steps, options.float_rate, weight_decay=5e-4, warmup=0.05, small=options.small
    )
    job = Job("float", schedule, options.out / "float.pt", settings, "--float-rate")
    train_on_pictures(job, model, schedule, run.pictures, compiled=options.compile)
    model.eval()
    return model


def score_trained_on(run: Run, model: nn.Module, settings: Settings) -> float:
    """What more steps of the same training bring to the float network: the control of the quantized runs."""
    options = run.options
    further, teacher = copy.deepcopy(model), copy.deepcopy(model)
    schedule = PictureSchedule(options.control, options.rate[4])
    job = Job("float, trained on", schedule, options.out / "float-on.pt", settings)
    with Distillation(further, teacher) as distill:
        train_on_pictures(job, further, schedule, run.pictures, distill)
    return score(further.eval(), run.test)


# --- at few bits --------------------------------------------------------------------------------


def calibration(pictures: Pictures) -> list[Tensor]:
    chosen = torch.randperm(len(pictures.labels), generator=torch.Generator().manual_seed(0))[:CALIBRATE]
    return [as_input(part) for part in pictures.pixels[chosen].split(64)]


def job_of(run: Run, bits: int, settings: Settings) -> tuple[Job, PictureSchedule]:
    """The training at ``bits`` bits; ``settings`` are those of the float network."""
    options = run.options
    decay = 1e-4 if bits > 2 else 5e-5
    schedule = PictureSchedule(options.steps.get(bits, 0), options.rate[bits], weight_decay=decay)
    own = {"--steps": schedule.steps, "--rate": schedule.rate, "--norms-move": options.norms_move}
    name = f"W{bits}A{bits}"
    return Job(name, schedule, options.out / f"{name}.pt", {**settings, **own}), schedule


def check_kept(run: Run, bits: int, settings: Settings) -> None:
    """Refuse what is kept of this width if it was made with other settings; all are looked at before any is trained."""
    job, schedule = job_of(run, bits, settings)
    run.journal.known(f"{job.name} post-training", run.measured_on(settings))
    if schedule.steps:
        check_state(job)
        run.journal.known(f"{job.name} trained", run.measured_on(job.settings))


def measure(run: Run, bits: int, model: nn.Module, settings: Settings) -> None:
    """Post-training quantization, training, conversion: into the journal, as far as it lacks them."""
    job, schedule = job_of(run, bits, settings)
    post = run.journal.measured(
        f"{job.name} post-training",
        run.measured_on(settings),
        lambda: score(fewbit.quantize(model, recipe(bits), calibration(run.pictures)), run.test),
    )
    print(f"{job.name} post-training: {post:.2f}", file=sys.stderr)
    if schedule.steps:
        found = run.journal.measured(
            f"{job.name} trained", run.measured_on(job.settings), lambda: trained(run, bits, model, job, schedule)
        )
        print(f"{job.name} trained: {found['trained']:.2f}, converted: {found['converted']:.2f}", file=sys.stderr)


def trained(run: Run, bits: int, model: nn.Module, job: Job, schedule: PictureSchedule) -> dict[str, float]:
    """Train and convert; the converted model is saved."""
    moving = int(run.options.norms_move * schedule.steps)
    prepared = fewbit.prepare_qat(model, recipe(bits), calibration(run.pictures), freeze_norms_after=moving)
    with Distillation(prepared, model) as distill:
        train_on_pictures(job, prepared, schedule, run.pictures, distill)
    converted = fewbit.convert(prepared)
    found = agreement(prepared.eval(), converted, run.test)
    fewbit.save(converted, run.options.out / job.name, overwrite=True)
    deployed = fewbit.deploy(converted, calibration(run.pictures), engine="torch")
    return {"steps": schedule.steps, **asdict(found), "integers": score(deployed, run.test)}


# --- what is told -------------------------------------------------------------------------------


def results(run: Run) -> dict[str, Any]:
    """All that the journal holds, as in ``results.json``."""
    known = {name: entry["value"] for name, entry in run.journal.entries.items()}
    names = [name.removesuffix(" post-training") for name in known if name.endswith(" post-training")]
    rows = [Row(n, post_training=known[f"{n} post-training"], **known.get(f"{n} trained", {"steps": 0})) for n in names]
    return {
        "network": run.options.network,
        "float": known["float"],
        "float_trained_on": known.get("float, trained on"),
        "rows": [asdict(row) for row in rows],
    }


def write_results(run: Run) -> None:
    out, found = run.options.out, results(run)
    write_text(out / "results.json", json.dumps(found, indent=2) + "\n")
    names = ["float", *(row["name"] for row in found["rows"])]
    write_plots({name: kept_history(out / f"{name}.pt") for name in names}, out / "training.html")


def table(found: dict[str, Any]) -> str:
    titles = (
        "",
        "steps",
        "post-training",
        "trained",
        "converted",
        "to float",
        "agree",
        "values that differ",
        "integers",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    for row in (Row(**row) for row in found["rows"]):
        best = row.post_training if row.converted is None else row.converted
        trained = ["", ""] if row.trained is None else [f"{row.trained:.2f}", f"{row.converted:.2f}"]
        agree = ["", ""] if row.values is None else [f"{row.agreement:.4f}", f"{row.different} of {row.values:.2e}"]
        to_float = f"{best - found['float']:+.2f}"
        cells = [row.name, str(row.steps), f"{row.post_training:.2f}", *trained, to_float, *agree]
        cells.append("" if row.integers is None else f"{row.integers:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- the command line ---------------------------------------------------------------------------


def steps_by_width(text: str) -> dict[int, int]:
    """``4:600,2:2000`` as a dictionary."""
    try:
        found = {int(bits): int(steps) for bits, steps in (part.split(":") for part in text.split(",") if part)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4:600,2:2000") from error
    if any(steps < 0 for steps in found.values()):
        raise argparse.ArgumentTypeError(f"{text!r} has a negative number of steps")
    return found


def rates_by_width(text: str) -> dict[int, float]:
    """``0.01`` for all widths, or ``4:0.004,2:0.02`` for those and the defaults for the others."""
    pairs = [part.partition(":")[::2] for part in text.split(",") if part]
    if len(pairs) == 1 and not pairs[0][1]:
        return dict.fromkeys(WIDTHS, rate(text))
    if not all(bits.isdecimal() and int(bits) in WIDTHS for bits, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.01, or 4:0.004,2:0.02")
    return {**RATES, **{int(bits): rate(value) for bits, value in pairs}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    train_default, test_default = str(SHARED / "cifar10-train.zip"), str(SHARED / "cifar10-test-dev.zip")
    parser.add_argument("--train", type=existing, default=train_default, help="pictures to train on")
    parser.add_argument("--test", type=existing, default=test_default, help="pictures to test on")
    parser.add_argument("--out", type=folder, default=Path("runs"), help="folder of states and results")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--size", type=whole(8, 512), default=32, help="pixels a side")
    parser.add_argument("--float-steps", type=whole(0), default=390 * 60, help="training steps in float")
    parser.add_argument("--float-rate", type=rate, default=0.1, help="highest learning rate in float")
    parser.add_argument("--small", type=share, default=0.0, help="share of the float steps at three quarters' size")
    parser.add_argument("--start", type=existing, help="float.pt of an earlier run to train on from")
    parser.add_argument("--compile", action="store_true", help="torch.compile the float training; needs a C++ compiler")
    parser.add_argument("--steps", type=steps_by_width, default={4: 780, 3: 1170, 2: 2340}, help="width:steps,…")
    parser.add_argument("--control", type=whole(0), default=0, help="also train the float network on for so many steps")
    rate_help = "highest learning rate of quantized training, or width:rate,… (default: 4:0.004,3:0.01,2:0.02)"
    parser.add_argument("--rate", type=rates_by_width, default=RATES, help=rate_help)
    # Without batch norm's own scaling all but a low learning rate diverges, so it moves until the rate has come down.
    parser.add_argument("--norms-move", type=share, default=0.9, help="share of the steps in which batch norm moves")
    parser.add_argument("--widths", type=int, choices=WIDTHS, nargs="+", default=[8, 4, 3, 2])
    options = parser.parse_args()
    if options.float_steps == 0 and not options.start:
        parser.error("--float-steps 0 leaves the network untrained: give steps, or a trained one with --start")
    if options.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "c++", "cl"))):
        parser.error("--compile needs a C++ compiler, and none is on the path")
    return options


def main() -> None:
    options = arguments()
    require("plotly", "report")
    pictures = load_pictures(options.train, options.size)
    test = load_pictures(options.test, options.size, pictures.classes)
    make_folder(options.out)
    common = {"--network": options.network, "--size": options.size, "the training pictures": pictures.fingerprint()}
    run = Run(options, pictures, test, Journal(options.out / "measured.json"), common)
    model = float_network(run)
    settings = {**common, "the float network": fingerprint(model.state_dict())}
    widths = list(dict.fromkeys(options.widths))
    for bits in widths:
        check_kept(run, bits, settings)
    float_score = run.journal.measured("float", run.measured_on(settings), lambda: score(model, test))
    print(f"float: {float_score:.2f}", file=sys.stderr)
    if options.control:
        own = {**settings, "--control": options.control, "--rate": options.rate[4]}
        further = run.journal.measured(
            "float, trained on", run.measured_on(own), lambda: score_trained_on(run, model, own)
        )
        print(f"float, trained on for {options.control} steps: {further:.2f}", file=sys.stderr)
    for bits in widths:
        measure(run, bits, model, settings)
        write_results(run)
    print(f"float: {float_score:.2f} top-1\n\n{table(results(run))}")


if __name__ == "__main__":
    command(main)
