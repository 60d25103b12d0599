"""Codebooks: any sorted list of values. NF4 (QLoRA, arXiv 2305.14314, appendix E), ternary and binary ship."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class Codebook:
    """``values`` in rising order; the code of a value is its index.

    Raises:
        FewbitError: The values are not strictly rising finite numbers, or not 2 to 256 of them.
    """

    name: str
    values: tuple[float, ...]
    use: str = "weights, with values fitted to their distribution"
    is_integer: bool = False

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.values, self.values[1:]))
        finite = all(abs(v) < float("inf") for v in self.values)
        if not (2 <= len(self.values) <= 256 and rising and finite):
            raise FewbitError(f"codebook {self.name!r} needs 2 to 256 finite values in strictly rising order")

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (len(self.values) - 1).bit_length()

    @property
    def qmin(self) -> float:
        """The first value."""
        return self.values[0]

    @property
    def qmax(self) -> float:
        """The last value."""
        return self.values[-1]

    @property
    def smallest_step(self) -> float:
        """The smallest gap."""
        return min(b - a for a, b in zip(self.values, self.values[1:]))

    @property
    def code_dtype(self) -> torch.dtype:
        """An index fits a byte."""
        return torch.uint8

    def round(self, x: Tensor) -> Tensor:
        """Nearest value, ties to the even index, saturating at the ends."""
        return self._table(x).to(x.dtype)[self._nearest(x)]

    def encode(self, values: Tensor) -> Tensor:
        """Indices of the nearest values."""
        return self._nearest(values).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Values of indices."""
        return self._table(codes).to(torch.float32)[codes.to(torch.int64)]

    def _table(self, like: Tensor) -> Tensor:
        # Values are float32 numbers, so that a decoded value encodes to itself.
        return torch.tensor(self.values, dtype=torch.float32, device=like.device).to(torch.float64)

    def _nearest(self, x: Tensor) -> Tensor:
        table = self._table(x)
        middles = (table[1:] + table[:-1]) / 2  # exact in float64
        x64 = x.to(torch.float64)
        below = torch.bucketize(x64, middles, right=False)
        above = torch.bucketize(x64, middles, right=True)  # differs from `below` on ties alone
        return torch.where(below % 2 == 0, below, above)


# fmt: off
NF4 = Codebook("nf4", (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0), "normally distributed weights (QLoRA)")
# fmt: on
TERNARY = Codebook("ternary", (-1.0, 0.0, 1.0), "weights of ternary networks")
BINARY = Codebook("binary", (-1.0, 1.0), "weights of binary networks")


def parse(name: str) -> Codebook | None:
    """The codebook of a name, or None when there is none."""
    return next((book for book in known() if book.name == name), None)


def known() -> list[Codebook]:
    """Every codebook that ships; others are made as ``Codebook(name, values)``."""
    return [NF4, TERNARY, BINARY]
