"""What the training examples' command lines share: checked arguments, and one sentence for what the user can mend."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from fewbit.errors import FewbitError


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Argument type: an integer of ``least`` to ``most``."""
    limits = f"at least {least}" if most is None else f"{least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of {limits}")
        return value

    return parse


def rate(text: str) -> float:
    """Argument type: a learning rate."""
    value = _float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    """Argument type: a number of 0 to 1."""
    value = _float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 to 1")
    return value


def existing(text: str) -> Path:
    """Argument type: a path at which there is something."""
    if not text or not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text or 'an empty path'} does not exist")
    return Path(text)


def folder(text: str) -> Path:
    """Argument type: a folder, there or to be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: name a folder")
    return path


def make_folder(path: Path) -> None:
    """Make ``path`` and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FewbitError(f"the folder {path} cannot be made: {error.strerror or error}") from error


def command(main: Callable[[], None]) -> None:
    """Run ``main``; exit with 1 and a sentence after an error (argparse exits with 2 for a wrong argument)."""
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; with --out, the same command goes on from the last state kept")


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
