"""`fewbit.compare`: one pass of a model and its quantized copy over the same batches, and everything told about it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.evaluate.layers import LayerPass
from fewbit.evaluate.size import file_bytes, module_bytes
from fewbit.evaluate.speed import interleaved_times
from fewbit.evaluate.whole import OutputErrors
from fewbit.nn import fold_batch_norm, info, run
from fewbit.report.comparison import Comparison, SizePair, TimePair

Progress = Callable[[str, int, int], None]


def compare(
    model: nn.Module,
    quantized: nn.Module,
    batches: Iterable[Any],
    *,
    repeats: int = 9,
    files: tuple[str | Path | None, str | Path | None] = (None, None),
    progress: Progress | None = None,
) -> Comparison:
    """Tell what quantization cost.

    Args:
        model: The float original. It is not changed.
        quantized: What `fewbit.quantize` made of it. It is not changed.
        batches: Tensors, tuples or dictionaries to call both models with; gone through once.
        repeats: Timed runs of each model on the first batch, after two that do not count; 0 for none.
        files: The saved original and the saved quantized model, file or folder, for their size on disk.
        progress: Called with stage, done and total (0 when unknown) as the work goes on.

    Returns:
        Figures for every quantized layer and for the whole model. Layers are measured against the original with
        its batch norms folded when the quantized model's were; outputs against the original as it is.

    Raises:
        FewbitError: There are no batches, the models do not belong together, or the quantized one gives NaN.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    reference = _folded(model) if _was_folded(quantized) else model
    total = len(batches) if hasattr(batches, "__len__") else 0
    layers, outputs, first = LayerPass(reference, quantized), OutputErrors(), None
    with _evaluating(model, reference, quantized):
        for done, batch in enumerate(batches):
            tell("compare", done, total)
            first = batch if first is None else first
            _run_batch(batch, model, layers, outputs)
        tell("compare", total or outputs.batches, total or outputs.batches)
        if first is None:
            raise FewbitError("there are no batches to compare on; give at least one")
        time = _time(model, quantized, first, repeats, tell) if repeats else None
    main, made = outputs.main, info(quantized)
    return Comparison(
        rows=layers.costs(),
        outputs=outputs.costs,
        output_sqnr=outputs.total_sqnr,
        top1=main.top1,
        cosine=main.cosine,
        size=_size(model, quantized, files),
        time=time,
        batches=outputs.batches,
        samples=outputs.samples,
        notes=tuple(made.notes) if made is not None else (),
    )


def _run_batch(batch: Any, model: nn.Module, layers: LayerPass, outputs: OutputErrors) -> None:
    """Run the models with the layers watched; the original apart when the reference is its folded copy."""
    with layers.hooked():
        expected = run(layers.reference, batch)
        measured = run(layers.quantized, batch)
    layers.end_batch()
    if model is not layers.reference:
        expected = run(model, batch)
    outputs.add(expected, measured)


def _time(model: nn.Module, quantized: nn.Module, batch: Any, repeats: int, tell: Progress) -> TimePair:
    tell("time", 0, 0)
    before, after = interleaved_times([lambda: run(model, batch), lambda: run(quantized, batch)], repeats)
    tell("time", 1, 1)
    return TimePair(before, after, torch.get_num_threads())


def _size(model: nn.Module, quantized: nn.Module, files: tuple[str | Path | None, str | Path | None]) -> SizePair:
    on_disk = [None if path is None else file_bytes(path) for path in files]
    return SizePair(module_bytes(model), module_bytes(quantized), *on_disk)


def _was_folded(quantized: nn.Module) -> bool:
    made = info(quantized)
    return made is not None and bool(made.folded)


def _folded(model: nn.Module) -> nn.Module:
    return fold_batch_norm(copy.deepcopy(model)).model


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """No gradients, and evaluation mode for as long as it lasts."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
