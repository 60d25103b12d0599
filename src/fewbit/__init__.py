"""fewbit quantizes neural networks and tells what it cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "FewbitError",
    "QSpec",
    "QTensor",
    "Recipe",
    "compare",
    "convert",
    "deploy",
    "load",
    "prepare_qat",
    "quantize",
    "quantize_tensor",
    "save",
]

# Where each public name lives; importing fewbit alone stays quick.
_HOMES = {
    "FewbitError": "fewbit.errors",
    "QSpec": "fewbit.numbers.spec",
    "QTensor": "fewbit.numbers.qtensor",
    "Recipe": "fewbit.recipe",
    "compare": "fewbit.report.comparison",
    "convert": "fewbit.train",
    "deploy": "fewbit.engines",
    "load": "fewbit.formats",
    "prepare_qat": "fewbit.train",
    "quantize": "fewbit.pipeline",
    "quantize_tensor": "fewbit.pipeline",
    "save": "fewbit.formats",
}

if TYPE_CHECKING:
    from fewbit.engines import deploy
    from fewbit.errors import FewbitError
    from fewbit.formats import load, save
    from fewbit.numbers.qtensor import QTensor
    from fewbit.numbers.spec import QSpec
    from fewbit.pipeline import quantize, quantize_tensor
    from fewbit.recipe import Recipe
    from fewbit.report.comparison import compare
    from fewbit.train import convert, prepare_qat


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fewbit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
