"""What fewbit knows about model families: one small table a family, found by ``config.model_type``.

:func:`layout` resolves a table against a model (also one on the meta device); a model without a table gets plain layer
rules. A new family is a new file, named as its ``model_type``, that defines ``FAMILY``.
"""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from fewbit.models import generic
from fewbit.models.layout import Block, Layout, resolve
from fewbit.models.table import Family, Feed, Group, Reader, Stack

__all__ = ["Block", "Family", "Feed", "Group", "Layout", "Reader", "Stack", "families", "family", "layout"]

_MACHINERY = ("table", "layout", "generic")


def families() -> list[str]:
    """The ``model_type`` of every family there is a table for."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name not in _MACHINERY)


def family(model_type: str) -> Family | None:
    """The table of a family, None where there is none."""
    name = model_type.replace("-", "_")
    if name not in families():
        return None
    table: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return table


def layout(model: nn.Module) -> Layout:
    """Where the blocks of a model are, which linears share an input and what feeds them.

    A table whose blocks the model does not have (a variant of the family that is built in another way) gives way to
    plain layer rules.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", "")).replace("-", "_")
    table = family(model_type)
    found = None if table is None else resolve(model_type, table, model)
    return found if found is not None and found.blocks else generic.layout(model)
