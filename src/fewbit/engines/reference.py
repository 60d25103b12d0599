"""Integer arithmetic alone (arXiv 1712.05877): slow, and what all others are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewbit.integer.fixed import FixedPoint
from fewbit.integer.ir import Network


def installed() -> bool:
    """Always."""
    return True


class Engine(FixedPoint):
    """Runs a network with fixed-point multipliers, rounded once."""

    def __init__(self, network: Network, example: Sequence[Tensor], threads: int | None = None) -> None:
        super().__init__(network, "single")

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes of every integer tensor."""
        values = self.values(*inputs)
        return {name: values[name].to(affine.dtype) for name, affine in self.network.affine.items()}
