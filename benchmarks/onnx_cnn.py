"""Convolutional networks as ONNX files: fewbit's Q/DQ models beside those of ONNX Runtime's quantizer and of nncf.

Accuracy: EfficientNet-Lite0 on 500 ImageNet pictures, calibrated on every fifth; agreement of the top-1 class with
FP32 and the logits' SQNR, Q/DQ models in ONNX Runtime, nncf's in OpenVINO. Speed: medians over interleaved calls,
ONNX Runtime and OpenVINO, batch 1 and 8; also a ResNet-18 and a MobileNetV2 with random weights, written below.

    python benchmarks/onnx_cnn.py --images ../shared/data/imagenet-sample-dev.zip [--only accuracy|make|speed]

writes ``benchmarks/results/onnx_cnn_accuracy.*`` and ``onnx_cnn_speed.*``. It needs fewbit[demo,onnx], and openvino
and nncf for their rows. Models are kept in ``--folder``, so that the speeds can be measured again without making them
again (``--only make`` makes what speed needs), and so are the speeds of each network: ``--nets`` measures some of them
and the table shows those of the others from before.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _results
import numpy as np
import torch
from torch import nn

import fewbit
from fewbit.evaluate import sqnr, top1_agreement
from fewbit.onnxgraph.session import Runner

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-dev.zip"
EVERY, BATCH = 5, 25
PEERS = ("ort-minmax", "ort-percentile", "ort-entropy", "nncf", "nncf-mixed")
FAST, COMPARED = ("fewbit", "fewbit openvino", "ort-minmax", "nncf"), ("ort-minmax", "nncf")
OURS: dict[str, dict[str, Any]] = {
    "fewbit": {},
    "fewbit rtn": {"algorithm": "rtn"},
    "fewbit openvino": {"target": "openvino"},
}


class Block(nn.Module):
    """ResNet's basic block (arXiv 1512.03385)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and into == out
        self.skip = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, into, H, W] to [N, out, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    blocks = [
        Block(i, o, s)
        for i, o, s in (
            (64, 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            (512, 512, 1),
        )
    ]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


class Inverted(nn.Module):
    """MobileNetV2's inverted residual (arXiv 1801.04381)."""

    def __init__(self, into: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = into * expand
        first = [nn.Conv2d(into, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()] if expand > 1 else []
        self.body = nn.Sequential(
            *first,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.adds = stride == 1 and into == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, into, H, W] to [N, out, H / stride, W / stride]."""
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    into = 32
    for expand, out, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(count):
            layers.append(Inverted(into, out, stride if i == 0 else 1, expand))
            into = out
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)).eval()


def as_trained(model: nn.Module) -> nn.Module:
    """The same with batch norms that shift, as every trained one does: folded, they are the convolutions' biases."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model


def lite0() -> nn.Module:
    from fewbit.demo.efficientnet import efficientnet_lite0

    return efficientnet_lite0()


NETS: dict[str, Callable[[], nn.Module]] = {
    "EfficientNet-Lite0": lite0,
    "ResNet-18": lambda: as_trained(resnet18()),
    "ResNet-18 unbiased": resnet18,
    "MobileNetV2": lambda: as_trained(mobilenet_v2()),
}


def export(name: str, folder: Path) -> Path:
    path = folder / f"{name.replace(' ', '-')}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        torch.onnx.export(
            NETS[name](),
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
        )
    return path


def make(name: str, how: str, data: list[np.ndarray], folder: Path) -> tuple[Path, float]:
    """A quantized model, and the seconds it took."""
    out = folder / f"{name}.{how}.{'xml' if how.startswith('nncf') else 'onnx'}".replace(" ", "-")
    took = out.with_suffix(".seconds")
    if out.exists():
        return out, float(took.read_text()) if took.exists() else float("nan")
    source, start = export(name, folder), time.perf_counter()
    if how in OURS:
        fewbit.quantize(source, "W8A8", data, output=out, **OURS[how])
    elif how.startswith("nncf"):
        nncf_quantize(source, data, out, how == "nncf-mixed")
    else:
        ort_quantize(source, data, out, how.removeprefix("ort-"))
    seconds = time.perf_counter() - start
    took.write_text(str(seconds))
    return out, seconds


def ort_quantize(source: Path, data: list[np.ndarray], out: Path, method: str) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items: Iterator[dict[str, np.ndarray]] = iter({"x": x[i : i + 1]} for x in data for i in range(len(x)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.items, None)

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    methods = {m.name.lower(): m for m in CalibrationMethod}
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[method],
    )
    prepared.unlink()


def nncf_quantize(source: Path, data: list[np.ndarray], out: Path, mixed: bool) -> None:
    import nncf
    import openvino as ov

    items = [x[i : i + 1] for x in data for i in range(len(x))]
    model = ov.Core().read_model(str(source))
    preset = nncf.QuantizationPreset.MIXED if mixed else nncf.QuantizationPreset.PERFORMANCE
    made = nncf.quantize(model, nncf.Dataset(items), preset=preset, subset_size=len(items))
    ov.save_model(made, str(out), compress_to_fp16=False)


def runner(path: Path, engine: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    if engine == "ONNX Runtime":
        session = Runner(path, threads=threads)
        return lambda x: session.run({"x": x})["logits"]
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    return lambda x: np.array(compiled(x)[0])


def accuracy(folder: Path, images: Path, hows: list[str]) -> None:
    from fewbit.sources import load_data

    batches = [b.numpy() for b in load_data(images, lite0(), batch_size=BATCH) if isinstance(b, torch.Tensor)]
    pictures = np.concatenate(batches)
    data = list(np.split(pictures[::EVERY], range(BATCH, len(pictures[::EVERY]), BATCH)))
    name = "EfficientNet-Lite0"

    def logits(path: Path, engine: str) -> torch.Tensor:
        run = runner(path, engine, torch.get_num_threads())
        return torch.from_numpy(np.concatenate([run(x) for x in batches]))

    reference, rows, entries = logits(export(name, folder), "ONNX Runtime"), [], []
    unseen = torch.arange(len(pictures)) % EVERY != 0
    for how in hows:
        path, _ = make(name, how, data, folder)
        engine = "OpenVINO" if how.startswith("nncf") else "ONNX Runtime"
        found = logits(path, engine)
        entry = {
            "model": how,
            "engine": engine,
            "agreement": top1_agreement(reference, found),
            "sqnr": sqnr(reference, found),
            "agreement_unseen": top1_agreement(reference[unseen], found[unseen]),
            "sqnr_unseen": sqnr(reference[unseen], found[unseen]),
        }
        entries.append(entry)
        rows.append(
            (
                how,
                engine,
                *(
                    f"{entry[k]:.3f}" if "agree" in k else f"{entry[k]:.2f}"
                    for k in ("agreement", "sqnr", "agreement_unseen", "sqnr_unseen")
                ),
            )
        )
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    columns = ("model", "engine", "as FP32", "SQNR dB", "unseen", "unseen dB")
    text = f"""# EfficientNet-Lite0 as ONNX, W8A8, {len(pictures)} ImageNet pictures

Reference: the FP32 file in ONNX Runtime. As FP32: share of pictures with the same top-1 class. Calibrated on every
fifth picture, measured on all; unseen: on the others alone. Made by `python benchmarks/onnx_cnn.py --only accuracy`.

{_results.markdown_table(columns, rows, left=2)}"""
    _results.write("onnx_cnn_accuracy", text, {"rows": entries})


def in_turn(calls: dict[str, Callable[[np.ndarray], np.ndarray]], x: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds; each round calls every model once, in an order of its own."""
    rng, taken = np.random.default_rng(1), {how: [] for how in calls}
    for turn in range(rounds + 3):
        for how in rng.permutation(list(calls)).tolist():
            start = time.perf_counter()
            calls[how](x)
            if turn >= 3:
                taken[how].append(time.perf_counter() - start)
    return {how: float(np.median(seconds)) for how, seconds in taken.items()}


def operations(name: str) -> float:
    """Multiplications and additions of one picture, in 10⁹."""
    counts = []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        counts.append(2 * output[0].numel() * layer.weight[0].numel())  # type: ignore[union-attr,operator]

    model = NETS[name]()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return sum(counts) / 1e9


def speed_data() -> list[np.ndarray]:
    return [np.random.default_rng(0).standard_normal((8, 3, 224, 224)).astype(np.float32)]


def measure(name: str, folder: Path, hows: list[str], rounds: int) -> list[dict[str, Any]]:
    """One entry for each engine and batch size of one network."""
    threads, data, entries = torch.get_num_threads(), speed_data(), []
    paths = {"FP32": export(name, folder)} | {how: make(name, how, data, folder)[0] for how in hows}
    for engine in ("ONNX Runtime", *(["OpenVINO"] if importlib.util.find_spec("openvino") else [])):
        usable = {how: p for how, p in paths.items() if engine == "OpenVINO" or p.suffix == ".onnx"}
        calls = {how: runner(path, engine, threads) for how, path in usable.items()}
        for batch in (1, 8):
            medians = {h: 1e3 * seconds for h, seconds in in_turn(calls, data[0][:batch], rounds).items()}
            entries.append({"net": name, "engine": engine, "batch": batch, "ms": medians, "threads": threads})
            print(entries[-1], file=sys.stderr, flush=True)
    return entries


def speed(folder: Path, nets: list[str], hows: list[str], rounds: int) -> None:
    entries = []
    for name in NETS:
        kept = folder / f"{name}.speed.json"
        if name in nets:
            kept.write_text(json.dumps(measure(name, folder, hows, rounds)))
        entries += json.loads(kept.read_text()) if kept.exists() else []
    columns = ("FP32", *hows)

    work = {name: operations(name) for name in {entry["net"] for entry in entries}}

    def row(entry: dict[str, Any]) -> tuple[str, ...]:
        ms = entry["ms"]
        rate = f"{1e3 * work[entry['net']] * entry['batch'] / ms['fewbit']:.0f}"
        against = (f"{ms[peer] / ms['fewbit']:.2f}" if {peer, "fewbit"} <= ms.keys() else "–" for peer in COMPARED)
        times = (f"{ms[how]:.2f}" if how in ms else "–" for how in columns)
        return entry["net"], entry["engine"], str(entry["batch"]), *times, *against, rate

    head = ("network", "engine", "batch", *columns, *(f"{peer} / fewbit" for peer in COMPARED), "GOP/s")
    text = f"""# Convolutional networks as ONNX, milliseconds

Medians of {rounds} rounds that call each model once in a random order, {entries[0]["threads"]} threads, 224×224
pictures; ResNet-18 and MobileNetV2 with random weights; unbiased: with batch norms as torch makes them, which shift
nothing, so that a convolution has no bias unless a quantizer corrects it. nncf's models run in OpenVINO alone. Last
columns: how many times as fast as that peer fewbit's model is, and the additions and multiplications that it makes in a
second. Where these are near what the machine's int8 instructions can do at all (`fewbit bench` tells), no quantizer's
model can be much faster than another's: so ResNet-18, whose files run as the same operators, one by one. Into depthwise
convolutions OpenVINO hands bfloat16 in nncf's models and codes in fewbit's.
Made by `python benchmarks/onnx_cnn.py --only speed`.

{_results.markdown_table(head, [row(entry) for entry in entries], left=2)}"""
    _results.write("onnx_cnn_speed", text, {"rows": entries})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--folder", type=Path, default=Path("onnx-models"), help="where models are made and kept")
    parser.add_argument("--only", choices=("accuracy", "make", "speed"))
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=list(NETS), help="speed of these")
    parser.add_argument("--models", nargs="+", default=[*OURS, *PEERS], help="of these rows")
    parser.add_argument("--only-table", action="store_true", help="of speeds that were measured before")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    fast = [how for how in options.models if how in FAST]
    if options.only in (None, "accuracy"):
        accuracy(options.folder, options.images, options.models)
    if options.only == "make":
        for name in options.nets:
            print(*(make(name, how, speed_data(), options.folder)[0].name for how in fast))
    if options.only in (None, "speed"):
        speed(options.folder, [] if options.only_table else options.nets, fast, options.rounds)


if __name__ == "__main__":
    main()
