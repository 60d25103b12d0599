"""Two ONNX models on the same data: error of every tensor they share, agreement of their outputs, time.

The tensors compared are those that layers (Conv, MatMul, Gemm, in float or behind Q/DQ) give in both models under one
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewbit.errors import FewbitError
from fewbit.evaluate.error import SignalNoise
from fewbit.evaluate.speed import Timing, interleaved_times
from fewbit.evaluate.whole import OutputCost, OutputErrors
from fewbit.onnxgraph import file
from fewbit.onnxgraph.constants import array_of, only_use
from fewbit.onnxgraph.observe import exposed
from fewbit.onnxgraph.session import Runner

_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_FOLDED = ("BatchNormalization", "Add", "Mul", "Relu", "Clip")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TensorCost:
    """The error of one tensor.

    Attributes:
        layer: The node of the first model that gives it.
        kind: That node's type.
        name: The tensor.
        sqnr: dB over all values, errors of earlier layers included.
    """

    layer: str
    kind: str
    name: str
    sqnr: float


@dataclass(frozen=True)
class OnnxComparison:
    """One ONNX model against another.

    Attributes:
        rows: One entry a layer whose output both models have.
        outputs: One entry an output.
        bytes_before: Of the first file with its external data.
        bytes_after: Of the second.
        time: Seconds of both on the first batch, medians of interleaved runs; None where not measured.
        batches: How many batches were run.
        samples: How many samples they held.
    """

    rows: tuple[TensorCost, ...]
    outputs: tuple[OutputCost, ...]
    bytes_before: int
    bytes_after: int
    time: tuple[Timing, Timing] | None
    batches: int
    samples: int


def compare_onnx(
    before: str | Path, after: str | Path, batches: Iterable[Any], *, repeats: int = 9, progress: Progress | None = None
) -> OnnxComparison:
    """Run two ONNX models on the same batches.

    Args:
        before: The reference.
        after: The other, usually made of it by quantizing.
        batches: Arrays or tensors for the first input, or mappings by input name.
        repeats: Timed runs of each; 0 for none.
        progress: Called with (stage, steps done, steps in all).

    Raises:
        FewbitError: A file cannot be read, the models take other inputs or give other outputs, or there are no batches.
    """
    models = [file.read(path) for path in (before, after)]
    _check_same(models)
    shared = shared_layers(*models)
    runners = [watching(models[0], [one.name for one in shared]), watching(models[1], [one.there for one in shared])]
    total = len(batches) if isinstance(batches, Sized) else 0
    outputs, energies = OutputErrors(), {one: SignalNoise() for one in shared}
    names = [value.name for value in models[0].graph.outputs]
    first, batches = _peeked(batches)
    for done, batch in enumerate(batches, 1):
        here, there = (runner.run(runner.feeds(batch)) for runner in runners)
        for one, energy in energies.items():
            energy.add(torch.from_numpy(here[one.name]), torch.from_numpy(there[one.there]))
        outputs.add(_outputs(here, names), _outputs(there, names))
        if progress is not None:
            progress("compare", done, total)
    rows = tuple(TensorCost(o.layer, o.kind, o.name, energy.sqnr) for o, energy in energies.items() if energy.count)
    return OnnxComparison(
        rows,
        outputs.costs,
        file.size(before),
        file.size(after),
        times([before, after], first, repeats) if repeats else None,
        outputs.batches,
        outputs.samples,
    )


def times(models: list[Any], batch: Any, repeats: int, threads: int = 0) -> Any:
    """Interleaved timings of ONNX models in ONNX Runtime on one batch, in their order."""
    runners = [Runner(model, threads=threads or torch.get_num_threads()) for model in models]
    feeds = [runner.feeds(batch) for runner in runners]
    calls = [lambda r=r, f=f: r.run(f) for r, f in zip(runners, feeds)]
    return tuple(interleaved_times(calls, repeats))


@dataclass(frozen=True)
class Shared:
    """A layer's output in the first model, and what stands for it in the second.

    Attributes:
        layer: The node of the first model.
        kind: Its type.
        name: The tensor.
        there: The tensor of the second model.
    """

    layer: str
    kind: str
    name: str
    there: str


def shared_layers(before: Any, after: Any) -> list[Shared]:
    """The layers whose output both models have, in the first one's order."""
    values = {value.name: value for node in after.graph for value in node.outputs}
    found = []
    for node in before.graph:
        if node.op_type in _LAYERS:
            names = [value.name for value in _behind(node.outputs[0])]
            name = next((name for name in reversed(names) if name in values), None)
            if name is not None:
                found.append(Shared(node.name or name, node.op_type, name, _decoded(values[name]).name))
    return found


def _behind(value: Any) -> list[Any]:
    """A layer's output, and what a batch norm, bias and activation function make of it: folding keeps the last name."""
    found = [value]
    while (node := only_use(value)) is not None and _folds(node, value) and len(found) < 4:
        value = node.outputs[0]
        found.append(value)
    return found


def _folds(node: Any, value: Any) -> bool:
    """Whether folding may take a node into the layer before it."""
    return node.op_type in _FOLDED and all(v is None or v is value or array_of(v) is not None for v in node.inputs)


def _decoded(value: Any) -> Any:
    """What the codes of a tensor stand for, where it is coded: its own value may lie beyond their range."""
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            reader = next((u.node for u in use.node.outputs[0].uses() if u.node.op_type == "DequantizeLinear"), None)
            return value if reader is None else reader.outputs[0]
    return value


def watching(model: Any, tensors: list[str], *, as_written: bool = False) -> Runner:
    """A model loaded with more tensors as its outputs, before its own."""
    with ExitStack() as stack:
        stack.enter_context(exposed(model, [*tensors, *(value.name for value in model.graph.outputs)]))
        return Runner(model, as_written=as_written)


def _check_same(models: list[Any]) -> None:
    for what in ("inputs", "outputs"):
        names = [[v.name for v in getattr(m.graph, what) if not v.is_initializer()] for m in models]
        if names[0] != names[1]:
            raise FewbitError(
                f"the models do not belong together: the {what} are {', '.join(names[0])} in one and "
                f"{', '.join(names[1])} in the other"
            )


def _peeked(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    iterator = iter(batches)
    first = list(islice(iterator, 1))
    if not first:
        raise FewbitError("there are no batches to compare on; give at least one")
    return first[0], chain(first, iterator)


def _outputs(found: dict[str, np.ndarray], names: list[str]) -> Any:
    """Outputs by name; a single one as it is, so that scores of classes are known as such."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in names}
    return tensors if len(names) > 1 else tensors[names[0]]
