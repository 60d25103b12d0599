"""Going through calibration data a second time, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_MOST_BYTES = 256 << 20


class Replay:
    """Batches that can be gone through again: as they are where they can, else the first 256 MiB of them, kept.

    Args:
        batches: A list, a DataLoader, or something that can be gone through once.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.again = hasattr(batches, "__len__") and hasattr(batches, "__getitem__")
        self.kept: list[Any] = []
        self.bytes = 0
        self.gone_through = False

    def __iter__(self) -> Iterator[Any]:
        if self.again or not self.gone_through:
            self.gone_through = True
            for batch in self.batches:
                self._keep(batch)
                yield batch
        else:
            yield from self.kept

    def _keep(self, batch: Any) -> None:
        if self.again:
            return
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        if not self.kept or self.bytes <= _MOST_BYTES:
            self.kept.append(batch)
