"""Algorithms that choose codes for a weight. One a file; the file's name is the algorithm's name.

Each module has ``Options`` (a frozen dataclass) and ``quantize_weight(weight, spec, options, name) -> QTensor`` on a
matrix ``[out, K]``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from fewbit.errors import FewbitError

__all__ = ["get", "names"]


def names() -> list[str]:
    """The algorithms there are: the modules of this package that define ``quantize_weight``."""
    found = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if hasattr(importlib.import_module(f"{__name__}.{name}"), "quantize_weight"))


def get(name: str) -> ModuleType:
    """The algorithm of a name.

    Raises:
        FewbitError: There is no such algorithm; the message lists what there is.
    """
    if name not in names():
        raise FewbitError(f"no algorithm is called {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
