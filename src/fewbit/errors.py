"""The errors fewbit raises for what a user can mend: one clear sentence each."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType


class FewbitError(ValueError):
    """Something the user handed in cannot be used; the message names it and the remedy."""


class MissingExtraError(FewbitError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class FewbitWarning(UserWarning):
    """What was asked for is done, and hardly of use; the message says why and what to try."""


class DiskFull(FewbitError):
    """There is no room on the disk; the message names the file, what is free, and what is needed if known."""


_LONGEST = 300


def told(error: BaseException) -> str:
    """What another library's error says, for the middle of a sentence: all its lines, cut only where it is long."""
    words = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, KeyError) or not words:  # which says nothing but the key
        words = f"{type(error).__name__} {words}".strip()
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


@contextlib.contextmanager
def failing(what: str, remedy: str) -> Iterator[None]:
    """A context that runs the user's model and tells what it raises as one sentence.

    Raises:
        FewbitError: It raised; the message is ``what``, its error, and the ``remedy``.
    """
    try:
        yield
    except FewbitError:
        raise
    except MemoryError as error:
        raise FewbitError(f"{what}: there is not enough memory; give fewer or shorter windows or batches") from error
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        if "allocate" in str(error) and "memory" in str(error):  # as torch tells it
            remedy = "give fewer or shorter windows or batches"
        raise FewbitError(f"{what}: {told(error)}; {remedy}") from error


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
