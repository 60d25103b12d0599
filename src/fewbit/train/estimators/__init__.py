"""Estimators: how quantization is trained through. One a file; the file's name is the estimator's name.

Each module has ``weight_quantizer(matrix, spec, start, name)`` and ``input_quantizer(spec, start, name)``, which give a
:class:`~fewbit.train.quantizer.FakeQuantizer`. ``start`` is the scale and zero point of post-training quantization.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from fewbit.errors import FewbitError

__all__ = ["get", "names"]


def names() -> list[str]:
    """The estimators there are: the modules of this package that define ``weight_quantizer``."""
    found = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if hasattr(importlib.import_module(f"{__name__}.{name}"), "weight_quantizer"))


def get(name: str) -> ModuleType:
    """The estimator of a name.

    Raises:
        FewbitError: There is no such estimator; the message lists what there is.
    """
    if name not in names():
        raise FewbitError(f"no estimator is called {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
