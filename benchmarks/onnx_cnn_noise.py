"""Is fewbit's Q/DQ model slower than ONNX Runtime's own under ONNX Runtime, or is that noise?

Each model is opened in several sessions, which lie elsewhere in memory; every round calls all sessions once in a random
order. What sessions of the same file differ by is the noise that a difference between files has to exceed. Beside it:
the operators of the graphs that ONNX Runtime makes of both files, with the types they work on.

    python benchmarks/onnx_cnn_noise.py --folder onnx-models

writes ``benchmarks/results/onnx_cnn_noise.*``. Models are those of ``onnx_cnn.py``, made by it where they are missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import _results
import numpy as np
import torch
from onnx_cnn import NETS, in_turn, make, runner

FILES = ("fewbit", "ort-minmax")
SESSIONS = 3


def operators(path: Path) -> Counter[tuple[str, tuple[str, ...]]]:
    """How often ONNX Runtime's graph of a file has an operator with constants of these types."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    types = {c.name: onnx.TensorProto.DataType.Name(c.data_type) + str(len(c.dims)) for c in graph.initializer}
    return Counter((n.op_type, tuple(types.get(name, "tensor") for name in n.input)) for n in graph.node)


def differences(name: str, folder: Path, data: list[np.ndarray]) -> str:
    """The operators that only one of the two graphs has, in words."""
    one, other = (operators(make(name, how, data, folder)[0]) for how in FILES)
    only = [
        f"{count} {kind} ({', '.join(types)}) in {how}"
        for how, left in zip(FILES, (one - other, other - one))
        for (kind, types), count in left.items()
    ]
    return f"- {name}: {sum((one & other).values())} operators alike; {'; '.join(only) or 'no other'}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("onnx-models"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng, rows, entries, words = np.random.default_rng(0), [], [], []
    for name in NETS:
        data = [rng.standard_normal((8, 3, 224, 224)).astype(np.float32)]
        paths = {how: make(name, how, data, options.folder)[0] for how in FILES}
        words.append(differences(name, options.folder, data))
        calls: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            f"{how} {n}": runner(path, "ONNX Runtime", torch.get_num_threads())
            for how, path in paths.items()
            for n in range(SESSIONS)
        }
        for batch in options.batches:
            rounds = options.rounds * (4 if batch == 1 else 1)
            found = {key: 1e3 * s for key, s in in_turn(calls, data[0][:batch], rounds).items()}
            entries.append({"net": name, "batch": batch, "rounds": rounds, "ms": found})
            each = [[found[f"{how} {n}"] for n in range(SESSIONS)] for how in FILES]
            noise = max(max(ms) / min(ms) for ms in each) - 1
            ratio = np.mean(each[0]) / np.mean(each[1]) - 1
            cells = (" / ".join(f"{ms:.2f}" for ms in sorted(times)) for times in each)
            rows.append((name, str(batch), *cells, f"{100 * noise:.1f}", f"{100 * ratio:+.1f}"))
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    columns = ("network", "batch", "fewbit, ms", "ONNX Runtime's own, ms", "same file, %", "fewbit − own, %")
    text = f"""# Two Q/DQ files under ONNX Runtime, each in {SESSIONS} sessions

Medians of {options.rounds} rounds ({4 * options.rounds} at batch 1), {torch.get_num_threads()} threads, a random order
in each. "Same file": by how much the slowest session of a file exceeds the fastest, of the two files the worse.
Made by `python benchmarks/onnx_cnn_noise.py`.

{_results.markdown_table(columns, rows, left=1)}

What ONNX Runtime makes of the two files, with the types of constants:

{chr(10).join(words)}"""
    _results.write("onnx_cnn_noise", text, {"rows": entries})


if __name__ == "__main__":
    main()
