"""Giving freed memory back to the system.

glibc keeps what threads free in an arena for each of them, tensors of up to 32 MB included: over a run that adds up to
more than a gigabyte, which the limit that a user set does not know of.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Give back what is free; does nothing where the C library cannot."""
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc
        return lambda _keep: None
    return found
