"""Floating formats: sign, exponent, mantissa. FP8 and FP4 as in the OCP specifications (8-bit 1.0, MX 1.0)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_NATIVE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class MinifloatFormat:
    """1 sign bit, ``exponent_bits``, ``mantissa_bits``; subnormals; ``qmax`` saturates instead of giving infinity.

    A value is ``(-1)^sign · 2^(e − bias) · (1 + m/2^M)`` and, for e = 0, ``(-1)^sign · 2^(1 − bias) · m/2^M``.
    Formats of 16 bits and more keep their own torch dtype as the code; smaller ones keep the bit pattern in uint8.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    qmax: float
    use: str
    is_integer: bool = False

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa together."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """The exponent's bias, 2^(E−1) − 1."""
        return int(2 ** (self.exponent_bits - 1) - 1)

    @property
    def qmin(self) -> float:
        """The format is symmetric."""
        return -self.qmax

    @property
    def smallest_step(self) -> float:
        """The smallest subnormal, 2^(1 − bias − M)."""
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))

    @property
    def code_dtype(self) -> torch.dtype:
        """The torch dtype itself for 16 and 32 bits, a byte below."""
        return _NATIVE.get(self.name, torch.uint8)

    def round(self, x: Tensor) -> Tensor:
        """Nearest value, ties to the even mantissa, saturating at ±qmax."""
        x = x.clamp(self.qmin, self.qmax)
        if self.name in _NATIVE:
            return x.to(_NATIVE[self.name]).to(x.dtype)
        _, exponent = torch.frexp(x)  # |x| = m·2^e with m in [0.5, 1)
        exponent = (exponent - 1).clamp_(min=1 - self.bias) - self.mantissa_bits
        step = torch.ldexp(torch.ones_like(x), exponent)  # a power of two: the division below is exact
        return torch.round(x / step) * step

    def encode(self, values: Tensor) -> Tensor:
        """Bit patterns of values on the grid."""
        if self.name in _NATIVE:
            return values.to(_NATIVE[self.name])
        magnitude = values.abs()
        _, exponent = torch.frexp(magnitude)
        field = (exponent - 1 + self.bias).clamp_(min=0)
        field = torch.where(magnitude < 2.0 ** (1 - self.bias), 0, field)
        unit = torch.ldexp(torch.ones_like(magnitude), field.clamp(min=1) - self.bias - self.mantissa_bits)
        mantissa = (magnitude / unit).to(torch.int32) & (2**self.mantissa_bits - 1)
        sign = torch.signbit(values).to(torch.int32) << (self.bits - 1)
        codes: Tensor = sign | (field.to(torch.int32) << self.mantissa_bits) | mantissa
        return codes.to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Values of bit patterns; the patterns of NaN and infinity give them."""
        if self.name in _NATIVE:
            return codes.to(torch.float32)
        table = torch.tensor(_values(self), dtype=torch.float32, device=codes.device)
        return table[codes.to(torch.int64)]


@lru_cache
def _values(fmt: MinifloatFormat) -> tuple[float, ...]:
    """The value of each of the 2^bits patterns."""
    values = []
    for code in range(2**fmt.bits):
        field = (code >> fmt.mantissa_bits) & (2**fmt.exponent_bits - 1)
        mantissa = (code & (2**fmt.mantissa_bits - 1)) / 2**fmt.mantissa_bits
        magnitude = 2.0 ** (field - fmt.bias) * (1 + mantissa) if field else 2.0 ** (1 - fmt.bias) * mantissa
        if magnitude > fmt.qmax:  # E5M2 keeps infinity, both keep NaN
            magnitude = float("inf") if fmt.name == "fp8_e5m2" and mantissa == 0 else float("nan")
        values.append(-magnitude if code >> (fmt.bits - 1) else magnitude)
    return tuple(values)


_KNOWN = (
    MinifloatFormat("fp32", 8, 23, 3.4028234663852886e38, "training, the reference"),
    MinifloatFormat("bf16", 8, 7, 3.3895313892515355e38, "training and inference on newer hardware"),
    MinifloatFormat("fp16", 5, 10, 65504.0, "inference on GPUs, scales in files"),
    MinifloatFormat("fp8_e4m3", 4, 3, 448.0, "weights and activations on GPUs with FP8"),
    MinifloatFormat("fp8_e5m2", 5, 2, 57344.0, "gradients, wide ranges"),
    MinifloatFormat("fp4_e2m1", 2, 1, 6.0, "weights in small blocks (MXFP4, NVFP4)"),
)


def parse(name: str) -> MinifloatFormat | None:
    """The format of a name, or None when it is not a floating format."""
    return next((fmt for fmt in _KNOWN if fmt.name == name), None)


def known() -> list[MinifloatFormat]:
    """Every floating format, wide to narrow."""
    return list(_KNOWN)
