"""Batches made when they are asked for, and kept while they fit in memory.

Calibration reads its data more than once (the statistics, then the bias correction), and decoding pictures
costs more than a small network's forward pass. So the batches that fit in ``KEEP_BYTES`` are decoded once;
the rest anew on every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

#: What a model is called with: one tensor, or tensors by the names of its arguments.
Batch = torch.Tensor | dict[str, torch.Tensor]

#: Prepared batches stay in memory up to this many bytes.
KEEP_BYTES = 512 * 2**20


class Batches:
    """A re-iterable of batches, of known length.

    Attributes:
        samples: How many samples the batches hold together.
        describe: What the data is, for messages: ``"500 images of photos.zip"``.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        make: Callable[[int, int], Batch],
        *,
        describe: str,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Batches of `batch_size` samples, the last one smaller if need be; ``make(start, stop)`` prepares
        one."""
        self.samples = samples
        self.describe = describe
        self._bounds = [(i, min(i + batch_size, samples)) for i in range(0, samples, batch_size)]
        self._make = make
        self._kept: dict[int, Batch] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        """How many batches."""
        return len(self._bounds)

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in order; may be called again."""
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> Batch:
        """One batch."""
        start, stop = self._bounds[index]
        index %= len(self)
        if index in self._kept:
            return self._kept[index]
        batch = self._make(start, stop)
        size = _nbytes(batch)
        if size <= self._room:
            self._room -= size
            self._kept[index] = batch
        return batch


def spread(count: int, limit: int | None) -> list[int]:
    """Which of `count` samples to take when at most `limit` are wanted: evenly spaced ones, the first among
    them.

    Folders are often sorted by class, and their first samples would all be of one.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _nbytes(batch: Batch) -> int:
    tensors = batch.values() if isinstance(batch, dict) else (batch,)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
