"""Engines that run an integer network. One a file; the file's name is the engine's name.

Each module has ``installed() -> bool`` and ``Engine(network, example, threads)``, which is called with the network's
inputs and gives its outputs, and whose ``codes(*inputs)`` gives the codes of every tensor that is an integer. The
numbers are the same in all of them: one network, and outputs that differ by what an engine's own rounding of a float
product does.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from fewbit.engines.deployed import Deployed, deploy
from fewbit.errors import FewbitError

__all__ = ["Deployed", "deploy", "get", "names"]


def names() -> list[str]:
    """The engines there are: the modules of this package that define ``Engine``."""
    found = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if hasattr(importlib.import_module(f"{__name__}.{name}"), "Engine"))


def get(name: str) -> ModuleType:
    """The engine of a name.

    Raises:
        FewbitError: There is no such engine; the message lists what there is.
    """
    if name not in names():
        raise FewbitError(f"no engine is called {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
