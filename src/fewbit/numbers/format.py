"""What every number format promises: a finite set of values, each with a code."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Format(Protocol):
    """A set of representable values and their codes.

    ``q = clamp(round(x/s) + z, qmin, qmax)`` needs nothing else of a format: ``round`` goes to its grid,
    ``qmin`` and ``qmax`` are its smallest and largest value.
    """

    @property
    def name(self) -> str:
        """The name in a spec string, for example ``"int8"``."""
        ...

    @property
    def bits(self) -> int:
        """Bits of one code."""
        ...

    @property
    def qmin(self) -> float:
        """The smallest finite value."""
        ...

    @property
    def qmax(self) -> float:
        """The largest finite value."""
        ...

    @property
    def smallest_step(self) -> float:
        """The smallest distance between two neighbouring values."""
        ...

    @property
    def use(self) -> str:
        """What the format is used for, in a few words."""
        ...

    @property
    def is_integer(self) -> bool:
        """Whether the values are consecutive integers."""
        ...

    @property
    def code_dtype(self) -> torch.dtype:
        """The dtype that holds one unpacked code."""
        ...

    def round(self, x: Tensor) -> Tensor:
        """Round a floating tensor to the nearest value, ties to the even code, saturating at the ends."""
        ...

    def encode(self, values: Tensor) -> Tensor:
        """Codes (``code_dtype``) of values that are on the grid."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Values (float32) of codes."""
        ...


def bytes_per_value(fmt: Format) -> float:
    """Bytes of one densely packed value, without scale and zero point."""
    return fmt.bits / 8
