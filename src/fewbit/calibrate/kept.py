"""Batches that are gone through once, and a part of them kept for a second look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor

KEPT_BYTES = 64 * 2**20


class Kept:
    """Remembers the first batches that pass: at least one, and no more once they fill ``most`` bytes.

    Args:
        batches: Of any kind; an iterator will do.
        most: Bytes.

    Attributes:
        batches: What was kept.
    """

    def __init__(self, batches: Iterable[Any], most: int = KEPT_BYTES) -> None:
        self.source, self.most = batches, most
        self.batches: list[Any] = []

    def __len__(self) -> int:
        """How many there are; 0 when unknown."""
        return len(self.source) if isinstance(self.source, Sized) else 0

    def __iter__(self) -> Iterator[Any]:
        """All batches."""
        self.batches, left = [], self.most
        for batch in self.source:
            if left > 0:
                self.batches.append(batch)
                left -= nbytes(batch)
            yield batch


def first_part(batches: Iterable[Any], most: int = KEPT_BYTES) -> list[Any]:
    """The batches that :class:`Kept` would keep; no further ones are asked for."""
    found, left = [], most
    for batch in batches:
        found.append(batch)
        left -= nbytes(batch)
        if left <= 0:
            break
    return found


def nbytes(batch: Any) -> int:
    """The bytes of a batch's arrays and tensors."""
    if isinstance(batch, Tensor | np.ndarray):
        return int(batch.nbytes)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return sum(nbytes(value) for value in values)
