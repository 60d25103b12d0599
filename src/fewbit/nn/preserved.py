"""Running a model's own Python without keeping what it left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Whatever a forward assigns or writes to buffers while the context lasts is undone at its end.

    A symbolic trace would leave its proxies in a counter that the forward updates; calibration would leave its counts.
    """
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
        tables += [(table, dict(table)) for table in own]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for table, old in tables:
            table.clear()
            table.update(old)
        for buffer, value in values:
            if (buffer.is_inference() or buffer._version) and not buffer.equal(value):
                buffer.copy_(value)
