"""One pass of a model over calibration batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError, failing

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all (0 when unknown)


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on one batch, without gradients.

    A tensor is the only argument; a mapping gives named arguments; a tuple or list gives positional ones, and what the
    model does not take (the labels of a data loader) is left out.

    Raises:
        FewbitError: The batch is none of these.
    """
    batch = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, batch)  # a forward may work in place
    with torch.no_grad():
        if isinstance(batch, Tensor):
            return model(batch)
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
            return model(*_without_labels(model, batch))
    raise FewbitError(f"a batch is a tensor, a tuple or a dict of tensors, not {type(batch).__name__}")


def _without_labels(model: nn.Module, batch: Sequence[Any]) -> Sequence[Any]:
    """The leading values of the batch that the model takes; a trailing vector of integers beyond what it requires is a
    label."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return batch
    taken = [p for p in parameters if p.kind in positional]
    required = sum(p.default is inspect.Parameter.empty for p in taken)
    values = list(batch)
    last = values[-1]
    if len(values) > max(required, 1) and isinstance(last, Tensor) and not last.is_floating_point() and last.dim() <= 1:
        values.pop()
    return values[: len(taken)]


def call_named(model: nn.Module, batch: Any, name: str) -> Any:
    """:func:`call_model`, with the model's own errors told as one sentence.

    Raises:
        FewbitError: The model failed on the batch; the message names it.
    """
    with failing(f"the model failed on {name}", "mend the data or the model"):
        return call_model(model, batch)


def run_batches(
    model: nn.Module, batches: Iterable[Any], progress: Progress | None = None, stage: str = "calibrate"
) -> int:
    """Run the model over all batches for what hooks see of it.

    Returns:
        How many batches there were.

    Raises:
        FewbitError: There was no batch, or the model failed on one; the message says on which.
    """
    total = len(batches) if isinstance(batches, Sized) else 0
    count = 0
    for count, batch in enumerate(batches, 1):
        call_named(model, batch, f"calibration batch {count}")
        if progress is not None:
            progress(stage, count, total)
    if count == 0:
        raise FewbitError("the calibration data is empty; pass at least one batch")
    return count


def peek(data: Iterable[Any] | None) -> tuple[Any, Iterable[Any] | None]:
    """The first batch, and all batches with it.

    Raises:
        FewbitError: The data is a single batch, or has none.
    """
    if data is None:
        return None, None
    if isinstance(data, Tensor | dict | str):
        raise FewbitError("calibration data is an iterable of batches; write [batch] for a single one")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        first = next(iter(data), None)
        batches: Iterable[Any] = data
    else:
        iterator = iter(data)
        first = next(iterator, None)
        batches = _Chained(first, iterator)
    if first is None:
        raise FewbitError("the calibration data is empty; pass at least one batch")
    return first, batches


class _Chained:
    """A one-time iterable whose first item was taken already."""

    def __init__(self, first: Any, rest: Iterable[Any]) -> None:
        self.first, self.rest = first, rest

    def __iter__(self) -> Any:
        yield self.first
        yield from self.rest
