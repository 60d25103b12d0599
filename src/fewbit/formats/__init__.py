"""Formats a model can be saved in, one a file: the file's name, with ``-`` for ``_``, is the format's key.

A format is a module with ``save(model, path, *, source=None, overwrite=False) -> Path`` and
``load(path, model=None) -> nn.Module``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from fewbit.errors import FewbitError


def names() -> list[str]:
    """The keys of all formats, sorted."""
    found = pkgutil.iter_modules(__path__)
    return sorted(each.name.replace("_", "-") for each in found if not each.ispkg and not each.name.startswith("_"))


def get(name: str) -> ModuleType:
    """The format of that key, as its module.

    Raises:
        FewbitError: There is none; the message lists those there are.
    """
    if name not in names():
        raise FewbitError(f"there is no format {name!r}: choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "native",
    source: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model, whole or not at all.

    Args:
        model: The model, usually from ``fewbit.quantize``.
        path: The folder or file to appear.
        format: The key of the format, one of `names`.
        source: Where the float model came from, kept for the reader's information.
        overwrite: Whether an earlier output of the same format at ``path`` is replaced.

    Returns:
        ``path``.

    Raises:
        FewbitError: The format is unknown or cannot hold the model, or ``path`` is taken or cannot be
            written.
    """
    saved: Path = get(format).save(model, path, source=source, overwrite=overwrite)
    return saved


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    format: str = "native",
) -> nn.Module:
    """Load a model that `save` wrote, on the CPU and in evaluation mode.

    Args:
        path: What `save` wrote.
        model: The float model or a function that makes it, where the file could not hold the architecture.
        format: The key of the format, one of `names`.

    Raises:
        FewbitError: The format is unknown, or ``path`` is not of it, damaged, from a newer version, or needs
            ``model``.
    """
    loaded: nn.Module = get(format).load(path, model)
    return loaded
