"""torch itself: oneDNN's int8 products with uint8 results where they are exact, always there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewbit.integer.fast import Fast
from fewbit.integer.ir import Network


def installed() -> bool:
    """Always."""
    return True


class Engine(Fast):
    """Runs a network in torch; ``threads`` is torch's own setting and left as it is."""

    def __init__(self, network: Network, example: Sequence[Tensor], threads: int | None = None) -> None:
        super().__init__(network)
