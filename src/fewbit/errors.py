"""The errors fewbit raises for what a user can mend: one clear sentence each."""

from __future__ import annotations

import importlib
from types import ModuleType


class FewbitError(ValueError):
    """Something the user handed in cannot be used; the message names it and the remedy."""


class MissingExtraError(FewbitError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class FewbitWarning(UserWarning):
    """What was asked for is done, and hardly of use; the message says why and what to try."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Importable name, for example ``"transformers"``.
        extra: The extra of fewbit that installs it, for example ``"llm"``.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        raise MissingExtraError(f"this needs the package {package}: pip install 'fewbit[{extra}]'") from error
