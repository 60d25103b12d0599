"""Python's collector of cycles, kept from looking again and again at what was there before a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_left_out() -> Iterator[None]:
    """A context in which the collector looks at newer objects only: a model and the libraries are some hundred
    thousand, and looking at all of them whenever some calls are recorded costs 3% of a calibration. Where the caller
    keeps objects from it already, that is left as it is."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
