"""The arguments of a forward in a batch of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.calibrate.collect import _without_labels
from fewbit.errors import FewbitError


def arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments, read as :func:`fewbit.calibrate.collect.call_model` reads a batch.

    Raises:
        FewbitError: The batch is no tensor, tuple or dict.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        return tuple(_without_labels(model, batch)), {}
    raise FewbitError(f"a batch is a tensor, a tuple or a dict of tensors, not {type(batch).__name__}")
