"""`fewbit.compare`: a model and its quantized copy over the same batches, and all that this tells."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import call_model
from fewbit.errors import FewbitError
from fewbit.evaluate.layers import LayerPass
from fewbit.evaluate.outputs import floating_outputs
from fewbit.evaluate.size import file_bytes, model_bytes
from fewbit.evaluate.speed import interleaved_times
from fewbit.evaluate.whole import OutputErrors
from fewbit.nn import fold_batch_norm, info, quantized_layers
from fewbit.report.result import Comparison, SizePair, TimePair

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
        Figures for every quantized layer and for the whole model. Layers are measured against the original
        with its batch norms folded when the quantized model's were; outputs against the original as it is.

    Raises:
        FewbitError: There are no batches, the models do not belong together, or the quantized one gives NaN.
    """
    if quantized_layers(model):
        raise FewbitError("the first model is quantized already; compare takes the float model first")
    if not quantized_layers(quantized):
        raise FewbitError("the second model has no quantized layer; compare takes the quantized model second")
    tell = progress or (lambda _stage, _done, _total: None)
    total = len(batches) if isinstance(batches, Sized) else 0
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise FewbitError("there are no batches to compare on; give at least one")
    with _evaluating(model, quantized):
        reference = _reference(model, quantized, first)
        layers, outputs = LayerPass(reference, quantized), OutputErrors()
        for done, batch in enumerate(chain([first], iterator), 1):
            _run_batch(batch, done, model, layers, outputs)
            tell("compare", done, total)
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
        notes=()
        if made is None
        else (*made.notes, *(f"{name} stayed float: {why}" for name, why in made.skipped.items())),
    )


def _run_batch(batch: Any, number: int, model: nn.Module, layers: LayerPass, outputs: OutputErrors) -> None:
    """Run the models with the layers watched; the original apart when the reference is its folded copy."""
    try:
        with layers.hooked():
            expected = call_model(layers.reference, batch)
            measured = call_model(layers.quantized, batch)
        if model is not layers.reference:
            expected = call_model(model, batch)
    except FewbitError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewbitError(f"the model failed on batch {number}: {told}") from error
    layers.end_batch()
    outputs.add(expected, measured)


def _time(model: nn.Module, quantized: nn.Module, batch: Any, repeats: int, tell: Progress) -> TimePair:
    tell("time", 0, 0)
    before, after = interleaved_times([lambda: call_model(model, batch), lambda: call_model(quantized, batch)], repeats)
    tell("time", 1, 1)
    return TimePair(before, after, torch.get_num_threads())


def _size(model: nn.Module, quantized: nn.Module, files: tuple[str | Path | None, str | Path | None]) -> SizePair:
    on_disk = [None if path is None else file_bytes(path) for path in files]
    return SizePair(model_bytes(model), model_bytes(quantized), *on_disk)


def _reference(model: nn.Module, quantized: nn.Module, batch: Any) -> nn.Module:
    """What layers are measured against: the original, or a copy with its batch norms folded."""
    made = info(quantized)
    if made is None or not made.folded:
        return model

    def first_output(folded: nn.Module) -> Tensor | None:
        return next(iter(floating_outputs(call_model(folded, batch)).values()), None)

    return fold_batch_norm(copy.deepcopy(model), first_output).model


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
