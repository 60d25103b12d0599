"""One product to race on: ``[M, K] × [K, N]`` with weights of some bits, in more copies than a cache holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Run = Callable[[], object]
FOOTPRINT = 256 << 20  # bytes of weights that a contender walks through


class PeerUnavailable(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Contender:
    """Something that computes the product.

    Attributes:
        name: Shown in tables.
        copies: One call each; they take turns.
        nbytes: Bytes of weights that one call reads.
        unit: Whose peak bounds it: ``float32`` or ``int8``.
    """

    name: str
    copies: list[Run]
    nbytes: int
    unit: str = "int8"


@dataclass(frozen=True)
class Case:
    """A linear layer without bias.

    Attributes:
        m: Rows of the activations.
        k: Inputs.
        n: Outputs.
        bits: Bits of a weight.
        group: Weights that share a scale; 0 for a whole output channel.
        footprint: Bytes of weights that a contender should walk through before it meets the first again.
    """

    m: int
    k: int
    n: int
    bits: int
    group: int = 128
    footprint: int = FOOTPRINT
    weight: Tensor = field(init=False, repr=False, compare=False)
    x: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        object.__setattr__(self, "weight", torch.randn(self.n, self.k, generator=generator) / math.sqrt(self.k))
        object.__setattr__(self, "x", torch.randn(self.m, self.k, generator=generator))

    @property
    def shape(self) -> str:
        """``M×K×N``."""
        return f"{self.m}×{self.k}×{self.n}"

    @property
    def weights(self) -> str:
        """``int4 g128``."""
        return f"int{self.bits} " + (f"g{self.group}" if self.group else "channel")

    @property
    def operations(self) -> float:
        """Two a multiply-add."""
        return 2.0 * self.m * self.k * self.n

    def rounded(self) -> tuple[Tensor, Tensor]:
        """The weight rounded to nearest: signed codes int32 ``[N, groups, K / groups]``, scales ``[N, groups, 1]``."""
        blocks = self.weight.reshape(self.n, self.k // self.group if self.group else 1, -1)
        scale = blocks.abs().amax(-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return (blocks / scale).round().to(torch.int32), scale

    def packed_bytes(self, scale_bytes: float = 2) -> int:
        """Bytes of the weights with their scales."""
        scales = self.n * (self.k / self.group if self.group else 1)
        return int(self.n * self.k * self.bits / 8 + scales * scale_bytes)

    def copies(self, nbytes: int) -> int:
        """How many copies of weights of ``nbytes`` bytes walk through the footprint: at least 2."""
        return max(2, -(-self.footprint // nbytes))
