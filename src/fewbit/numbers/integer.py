"""Integers of 1 to 8 and 16 bits, signed (two's complement) and unsigned."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)

_USES = {
    "int8": "weights and activations of CNNs and encoders",
    "uint8": "activations, one-sided after ReLU",
    "int4": "weights of language models, in groups",
    "uint4": "weights with a zero point (GPTQ, AWQ files)",
    "int16": "activations where 8 bits are too few, accumulations",
    "int3": "weights, with GPTQ-like algorithms",
    "int2": "weights, after training or with strong algorithms",
}


@dataclass(frozen=True)
class IntegerFormat:
    """``signed``: −2^(b−1) … 2^(b−1)−1; unsigned: 0 … 2^b−1. The code of a value is the value itself."""

    bits: int
    signed: bool
    is_integer: bool = True

    @property
    def name(self) -> str:
        """``int8``, ``uint4``, …"""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def qmin(self) -> float:
        """The smallest code."""
        return float(-(2 ** (self.bits - 1))) if self.signed else 0.0

    @property
    def qmax(self) -> float:
        """The largest code."""
        return float(2 ** (self.bits - 1) - 1) if self.signed else float(2**self.bits - 1)

    @property
    def smallest_step(self) -> float:
        """Integers are one apart."""
        return 1.0

    @property
    def use(self) -> str:
        """What the format is used for."""
        return _USES.get(self.name, "weights, codes of other tools")

    @property
    def code_dtype(self) -> torch.dtype:
        """The narrowest torch integer that holds a code."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.signed else torch.uint16

    def round(self, x: Tensor) -> Tensor:
        """Half to even, then saturate."""
        return torch.round(x).clamp_(self.qmin, self.qmax)

    def encode(self, values: Tensor) -> Tensor:
        """The value is the code."""
        return values.to(self.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """The code is the value."""
        return codes.to(torch.float32)


def parse(name: str) -> IntegerFormat | None:
    """The format of a name, or None when it is not an integer of a known width."""
    match = re.fullmatch(r"(u?)int(\d{1,2})", name)
    if match is None or int(match[2]) not in WIDTHS:
        return None
    return IntegerFormat(int(match[2]), signed=not match[1])


def known() -> list[IntegerFormat]:
    """Every integer format, narrow to wide, signed before unsigned."""
    return [IntegerFormat(bits, signed) for bits in WIDTHS for signed in (True, False)]
