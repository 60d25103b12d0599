"""Algorithms that choose codes for a weight. One a file; the file's name is the algorithm's name.

Each module has

- ``Options``, a frozen dataclass whose defaults are right;
- ``NEEDS``, what it makes use of: ``()``, ``("gram",)`` or ``("gram", "held_back")``; the first it cannot do without;
- ``quantize_weight(weight, spec, options, name, statistics) -> QTensor`` on a matrix ``[out, K]``.

What an algorithm lowers is the change D of the layer's output where it needs data, ``tr(D G Dᵀ)`` with the
:class:`~fewbit.calibrate.gram.Gram` of the layer's input, and ``‖D‖²`` where it does not, unless it defines an
``objective(change)`` of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError

__all__ = ["get", "names", "required"]


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


def required(statistics: Statistics | None, algorithm: str, name: str) -> Statistics:
    """The statistics that an algorithm needs.

    Raises:
        FewbitError: There are none, or they saw no data; the message names the layer and the remedy.
    """
    if statistics is None:
        raise FewbitError(f"{name}: {algorithm} needs calibration data; pass data, or an algorithm without: rtn or hqq")
    if statistics.gram.count == 0:
        raise FewbitError(
            f"{name} saw no calibration data; pass batches that reach it, or an algorithm without data: rtn or hqq"
        )
    return statistics
