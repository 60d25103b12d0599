"""A quantized ONNX file's outputs against the float file's, see :mod:`.verdict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.evaluate import verdict
from fewbit.evaluate.onnx_models import shared_layers, watching
from fewbit.onnxgraph import file
from fewbit.onnxgraph.observe import one_sample
from fewbit.onnxgraph.session import Feeds, Runner

_SAMPLES = 16  # of those that the layers are compared on, one at a time


def doubt(before: Path, after: Path, batch: Any, *, as_written: bool) -> str | None:
    """Run both files once, and say in a sentence if hardly anything is left of an output.

    Args:
        before: The float file.
        after: What was made of it.
        batch: One for the first.
        as_written: Compute quantize and dequantize nodes one by one, as the rules of another runtime than ONNX Runtime
            want it.

    Raises:
        FewbitError: ONNX Runtime refuses one of the files.
    """
    runner = Runner(before)
    feeds = runner.feeds(batch)
    readable = [name for name in runner.outputs if name not in runner.unreadable]
    if not readable:
        return None
    wanted = _outputs(runner.run(feeds, readable))
    measured = _outputs(Runner(after, as_written=as_written).run(feeds, readable))
    return verdict.warning(
        verdict.kept(wanted, measured),
        lambda: verdict.kept(wanted, _outputs(runner.run(feeds, readable))),
        lambda: _first_lost(before, after, feeds, as_written),
    )


def _outputs(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(a) for name, a in arrays.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"
    }


def _first_lost(before: Path, after: Path, feeds: Feeds, as_written: bool) -> str | None:
    models = [file.read(path) for path in (before, after)]
    shared = shared_layers(*models)
    names = ([one.name for one in shared], [one.there for one in shared])
    pieces = _pieces(models[0], feeds)
    floats, codes = (
        _seen(watching(model, each, as_written=as_written), each, pieces, [_axis(one.kind) for one in shared])
        for model, each in zip(models, names)
    )
    found = {one.layer: (floats[one.name], codes[one.there]) for one in shared}
    name = verdict.first_lost(found)
    return None if name is None else f"node {name!r}"


def _axis(kind: str) -> int:
    return 1 if kind.startswith("Conv") else -1


def _pieces(model: Any, feeds: Feeds) -> list[Feeds]:
    """The samples one by one, where the model's batch is free."""
    if one_sample(model, feeds) is feeds:
        return [feeds]
    count = len(next(iter(feeds.values())))
    return [{name: array[i : i + 1] for name, array in feeds.items()} for i in range(min(count, _SAMPLES))]


def _seen(runner: Runner, names: list[str], pieces: list[Feeds], axes: list[int]) -> dict[str, Tensor]:
    """Some values of each tensor, ``[channels, values]``."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for feeds in pieces:
        arrays = runner.run(feeds, names)
        for name, axis in zip(names, axes):
            found[name].append(verdict.thinned(torch.from_numpy(arrays[name]), axis))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}
