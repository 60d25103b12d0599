"""int8 linear layers against torch's and ONNX Runtime's, interleaved in one process.

Weights rotate over several copies, so that they do not sit in the cache. Peers: torch FP32, torch's own dynamic int8
(``torch.ao.quantization.quantize_dynamic``) and, with ``onnxruntime`` installed, ONNX Runtime FP32.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _results import markdown_table, write
from torch import nn

import fewbit
from fewbit.evaluate import interleaved_times

SHAPES = ((1, 4096, 4096), (16, 4096, 4096), (128, 768, 3072), (512, 4096, 4096))  # M, K, N
BAR = 3.0  # times torch FP32, W8A8-dynamic, at 512x4096x4096
COPIES = 3


def rotating(modules: list[nn.Module], x: torch.Tensor) -> Callable[[], object]:
    turn = itertools.cycle(modules)

    def run() -> object:
        with torch.inference_mode():
            return next(turn)(x)

    return run


def onnxruntime_fp32(layers: list[nn.Linear], x: torch.Tensor) -> Callable[[], object] | None:
    try:
        import onnx
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        return None
    sessions = []
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for layer in layers:
        weight = numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), "w")
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
        graph = helper.make_graph([node], "linear", ends[:1], ends[1:], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        sessions.append(ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))
    turn, feed = itertools.cycle(sessions), {"x": np.ascontiguousarray(x.numpy())}
    return lambda: next(turn).run(None, feed)


def contenders(m: int, k: int, n: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    layers = [nn.Linear(k, n, bias=False).eval() for _ in range(COPIES)]
    x = torch.randn(m, k)
    made: dict[str, list[nn.Module]] = {
        "torch FP32": list(layers),
        "torch.ao dynamic int8": [
            torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8) for layer in layers
        ],
        "fewbit W8A8-dynamic": [fewbit.quantize(layer, "W8A8-dynamic") for layer in layers],
        "fewbit W8A8": [fewbit.quantize(layer, "W8A8", [x], calibrator="minmax") for layer in layers],
    }
    runs = {name: rotating(modules, x) for name, modules in made.items()}
    peer = onnxruntime_fp32(layers, x)
    if peer is not None:
        runs["ONNX Runtime FP32"] = peer
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    warnings.filterwarnings("ignore", module="torch")
    rows, data, reached = [], [], 0.0
    for m, k, n in SHAPES:
        runs = contenders(m, k, n)
        timings = interleaved_times(list(runs.values()), repeats, warmup=COPIES)
        base = timings[list(runs).index("torch FP32")].median
        for name, timing in zip(runs, timings):
            ratio, rate = base / timing.median, 2e-9 * m * k * n / timing.median
            rows.append([f"{m}×{k}×{n}", name, f"{1e3 * timing.median:.3f}", f"{ratio:.2f}", f"{rate:.0f}"])
            data.append({"shape": [m, k, n], "name": name, "ms": 1e3 * timing.median, "ratio": ratio})
            if (m, name) == (512, "fewbit W8A8-dynamic"):
                reached = ratio
    verdict = "held" if reached >= BAR else "**missed**"
    text = (
        f"# int8 linear layers\n\nMedians of {repeats} interleaved runs, "
        f"{COPIES} rotating weights; ratio: torch FP32 / this.\n\n"
        + markdown_table(["M×K×N", "", "ms", "× torch FP32", "GOP/s"], rows, left=2)
        + f"\n\nThe bar, W8A8-dynamic at 512×4096×4096 at least {BAR}× torch FP32: {reached:.2f}, {verdict}."
    )
    write("linear_int8", text, {"repeats": repeats, "rows": data})


if __name__ == "__main__":
    main()
