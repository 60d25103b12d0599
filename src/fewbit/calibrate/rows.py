"""A small sample of a layer's input rows, for searches that must quantize real inputs.

The rows with the smallest hash of their values are kept, so the sample does not depend on the order of the data or on
how it is spread over processes, and equal data give equal samples. Magnitudes are taken over all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from fewbit.errors import FewbitError

DEFAULT_LIMIT = 512
_MULTIPLIER = -7046029254386353131  # 2⁶⁴ divided by the golden ratio, odd, as a signed number
_SHIFT = 29


class Rows:
    """A streaming, mergeable sample of rows x.

    Args:
        columns: K, the width of x.
        limit: How many rows are kept.
        name: The layer's name in errors.

    Attributes:
        count: How many rows were seen.
    """

    def __init__(self, columns: int, limit: int = DEFAULT_LIMIT, name: str = "tensor") -> None:
        self.columns, self.limit, self.name, self.count = columns, limit, name, 0
        self._rows = torch.zeros(0, columns)
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._abs = torch.zeros(columns, dtype=torch.float64)
        self._max = torch.zeros(columns)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in the rows of ``x [..., K]``.

        Raises:
            FewbitError: x has another width, or holds NaN or infinity.
        """
        if x.shape[-1] != self.columns:
            raise FewbitError(f"{self.name} got an input of width {x.shape[-1]} instead of {self.columns}")
        rows = x.detach().reshape(-1, self.columns).to("cpu", torch.float32)
        if rows.shape[0] == 0:
            return
        largest = rows.abs().amax(dim=0)
        if not bool(torch.isfinite(largest).all()):
            raise FewbitError(f"{self.name} got an input that holds NaN or infinity; look at the calibration data")
        self._abs += rows.abs().sum(dim=0, dtype=torch.float64)
        self._max = torch.maximum(self._max, largest)
        self.count += rows.shape[0]
        self._keep(rows, _hashes(rows))

    def merge(self, other: Self) -> Self:
        """The statistic of both; neither changes.

        Raises:
            FewbitError: They have different widths.
        """
        if other.columns != self.columns:
            raise FewbitError(f"{self.name} has width {self.columns}, the other statistic {other.columns}")
        merged = type(self)(self.columns, self.limit, self.name)
        merged.count = self.count + other.count
        merged._abs, merged._max = self._abs + other._abs, torch.maximum(self._max, other._max)
        merged._keep(torch.cat([self._rows, other._rows]), torch.cat([self._keys, other._keys]))
        return merged

    @property
    def rows(self) -> Tensor:
        """float32 ``[at most limit, K]``, the sample."""
        self._check_seen()
        return self._rows

    @property
    def max_abs(self) -> Tensor:
        """float32 ``[K]``, the largest ``|x|`` of all rows."""
        self._check_seen()
        return self._max

    @property
    def mean_abs(self) -> Tensor:
        """float64 ``[K]``, the mean of ``|x|`` over all rows."""
        self._check_seen()
        return self._abs / self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors."""
        numbers = torch.tensor([self.count, self.limit], dtype=torch.int64)
        return {"rows": self._rows, "keys": self._keys, "abs": self._abs, "max": self._max, "numbers": numbers}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str = "tensor") -> Self:
        """The statistic of a :meth:`state_dict`."""
        count, limit = (int(number) for number in state["numbers"])
        made = cls(state["abs"].shape[0], limit, name)
        made.count, made._rows, made._keys = count, state["rows"], state["keys"]
        made._abs, made._max = state["abs"], state["max"]
        return made

    def _keep(self, rows: Tensor, keys: Tensor) -> None:
        if self._keys.numel() == self.limit:  # most of a long stream cannot enter any more
            few = keys < self._keys[-1]
            rows, keys = rows[few], keys[few]
        keys = torch.cat([self._keys, keys])
        order = keys.argsort(stable=True)[: self.limit]
        self._rows, self._keys = torch.cat([self._rows, rows])[order], keys[order]

    def _check_seen(self) -> None:
        if self.count == 0:
            raise FewbitError(f"{self.name} saw no calibration data; pass at least one batch that reaches it")


def _hashes(rows: Tensor) -> Tensor:
    """int64 ``[n]``: each row's bits times odd constants, summed, mixed (Knuth's multiplicative hash)."""
    bits = rows.contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, rows.shape[1] + 1, dtype=torch.int64) * _MULTIPLIER | 1
    mixed = (bits * places).sum(dim=1)
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MULTIPLIER
    return mixed ^ (mixed >> _SHIFT)
