"""What calibrating an ONNX model costs: EfficientNet-Lite0, 500 ImageNet pictures, the KL calibrator on every tensor.

Time of the pass (statistics and the solution of every range) as a multiple of the model's own forward passes over the
same pictures, picture files read and scaled outside the clock; peak memory (``VmHWM``) of the whole process, Python,
torch and ONNX Runtime included. ONNX Runtime's own quantizer keeps the activations it looks at.

    python benchmarks/onnx_calibration.py --images ../shared/data/imagenet-sample-dev.zip

writes ``benchmarks/results/onnx_calibration.*``. It needs fewbit[demo,onnx].
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _results
import torch
from onnx_cnn import BATCH, IMAGES, export, lite0

from fewbit import calibrate
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import file, layers, observe, placement, ranges, targets
from fewbit.onnxgraph.session import Runner
from fewbit.onnxgraph.simplify import simplify
from fewbit.sources import load_data

SPEC = QSpec.parse("uint8/tensor/asym")
CALIBRATOR = "entropy"


class Clocked:
    """Batches, decoded once and kept as fewbit's loader does, and the seconds that making them took."""

    def __init__(self, images: Path, limit: int) -> None:
        self.batches = load_data(images, lite0(), batch_size=BATCH, limit=limit)
        self.seconds, self.count = 0.0, 0

    def __iter__(self) -> Iterator[Any]:
        """One batch after the other."""
        self.seconds, self.count = 0.0, 0
        source = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            self.seconds += time.perf_counter() - start
            if not isinstance(batch, torch.Tensor):
                return
            self.count += len(batch)
            yield batch


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def child(which: str, images: Path, folder: Path, limit: int) -> dict[str, float]:
    """Measure in this process: the forward passes, then calibration."""
    path = export("EfficientNet-Lite0", folder)
    forward = Clocked(images, limit)
    runner = Runner(path, threads=torch.get_num_threads())
    start = time.perf_counter()
    for batch in forward:
        runner.run(runner.feeds(batch))
    passes = time.perf_counter() - start - forward.seconds
    del runner
    before = peak_mib()
    model = file.read(path)
    simplify(model)
    places = placement.place(model, layers.find(model), targets.get("onnxruntime"))
    module = calibrate.get(CALIBRATOR)
    statistics = ranges.new_statistics(places, CALIBRATOR, {})
    if which == "all":
        names = [v.name for node in model.graph for v in node.outputs if v.dtype is None or v.dtype.name == "FLOAT"]
        statistics |= {
            n: [module.new_statistic(PerTensor(), module.Options(), n)] for n in names if n not in statistics
        }
    data = forward
    start = time.perf_counter()
    observe.observe(model, statistics, data)
    for (statistic,) in statistics.values():
        module.solve(statistic, SPEC, module.Options())
    took = time.perf_counter() - start - data.seconds
    return {
        "tensors": len(statistics),
        "pictures": data.count,
        "forward_s": passes,
        "calibration_s": took,
        "ratio": took / passes,
        "peak_mib": peak_mib(),
        "peak_before_mib": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--folder", type=Path, default=Path("onnx-models"))
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--child", choices=("coded", "all"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.child:
        print(json.dumps(child(options.child, options.images, options.folder, options.limit)))
        return
    rows, entries = [], []
    for which, words in (("coded", "every tensor that gets codes"), ("all", "every float tensor of the graph")):
        command = [sys.executable, __file__, "--child", which, "--images", options.images, "--folder", options.folder]
        done = subprocess.run([*map(str, command), "--limit", str(options.limit)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        entries.append({"which": which, **found})
        cells = (f"{found[k]:.1f}" for k in ("forward_s", "calibration_s"))
        memory = (f"{found[k]:.0f}" for k in ("peak_before_mib", "peak_mib"))
        rows.append((words, f"{found['tensors']}", *cells, f"{found['ratio']:.2f}", *memory))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    columns = ("", "tensors", "forward passes, s", "calibration, s", "ratio", "peak before, MiB", "peak, MiB")
    text = f"""# Calibrating EfficientNet-Lite0 as ONNX with the KL calibrator, {entries[0]["pictures"]:.0f} pictures

The bars: at most twice the time of the forward passes, and less than 1024 MiB at the peak, the process as a whole.
{torch.get_num_threads()} threads. Made by `python benchmarks/onnx_calibration.py`.

{_results.markdown_table(columns, rows)}"""
    _results.write("onnx_calibration", text, {"rows": entries})


if __name__ == "__main__":
    main()
