"""What the tests of the compiled kernels run them on, and one call each that allocates the outputs.

Outputs are filled beforehand, so that what is left unwritten shows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fewbit import _native as native

SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 64, 1000)
SHAPES = list(itertools.product(SIZES, SIZES))
CODES = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.uint16: (0, 65535),
}
SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1.1e-38,
    3.4028234e38,
    -3.4028234e38,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    126.5,
    127.5,
]
torch.set_num_threads(1)


def matrix(rows: int, cols: int, *, wild: bool = False, seed: int = 0) -> Tensor:
    """Normal values; wild ones span float32's exponents, with ties, signed zeros, subnormals, extremes."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + rows * 1009 + cols)
    x = torch.randn(rows, cols, generator=generator)
    if wild:
        x = torch.ldexp(x, torch.randint(-140, 126, (rows, cols), generator=generator))
        special = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), (rows, cols), generator=generator)]
        x = torch.where(torch.rand(rows, cols, generator=generator) < 0.5, x, special)
    return x


def scales(rows: int) -> Tensor:
    """Powers of two and others, from the smallest normal number, where quotients overflow, to very large."""
    choices = torch.tensor([1.0, 0.25, 0.01, 3.0, 1.1754944e-38, 1e-30, 1e30, 0.0094])
    return choices[torch.arange(rows) % len(choices)]


def zero_points(rows: int, qmin: int, qmax: int) -> Tensor:
    return torch.tensor([0, qmin, qmax, 3, -7, 1 << 20], dtype=torch.int32)[torch.arange(rows) % 6]


def minmax(x: Tensor) -> Tensor:
    out = torch.full((x.shape[0], 2), 7.0)
    native.minmax_rows(x, out)
    return out


def quantized(x: Tensor, s: Tensor, z: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    out = torch.full(x.shape, 99, dtype=dtype)
    native.quantize_rows(x, s, z, qmin, qmax, out)
    return out


def histogram(x: Tensor, inv_width: Tensor, bins: int) -> Tensor:
    counts = torch.full((x.shape[0], bins), 5, dtype=torch.int64)
    native.histogram_rows(x, inv_width, counts)
    return counts


def grown_histogram(parts: list[Tensor], bins: int) -> list[Tensor]:
    """Counts, the exponent of the range, and the extremes of values ``[1, C]`` that come in parts."""
    counts, exponent = torch.zeros(1, bins, dtype=torch.int64), torch.tensor([-100])
    low, high = torch.full((1,), torch.inf), torch.full((1,), -torch.inf)
    for part in parts:
        native.histogram_grow(part, counts, exponent, low, high)
    return [counts, exponent, low, high]


def searched(x: Tensor, candidates: Tensor, symmetric: bool, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    lo, hi = torch.full((x.shape[0],), 7.0), torch.full((x.shape[0],), 7.0)
    native.mse_search_rows(x, candidates, symmetric, qmin, qmax, lo, hi)
    return lo, hi


def fused(x: Tensor, symmetric: bool, scale_type: str, bits: int) -> tuple[bool, Tensor, Tensor, Tensor]:
    """Whether every row has a scale; codes, scales, zero points."""
    scale, zero = torch.full((x.shape[0],), 7.0), torch.full((x.shape[0],), 7, dtype=torch.int32)
    out = torch.full(((x.numel() * bits + 7) // 8,), 99, dtype=torch.uint8)
    top = (1 << (bits - 1)) - 1
    done = native.minmax_quantize_rows(x, -top - 1, top, scale_type, bits, scale, None if symmetric else zero, out)
    return done, out, scale, zero


def refined(x: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Clips that begin at the whole range."""
    lo, hi = minmax(x)[:, 0].clamp(max=0), minmax(x)[:, 1].clamp(min=0)
    native.refine_clip_rows(x, torch.tensor([0.5, 0.8, 0.95, 1.05, 1.2]), 3, 0.99, qmin, qmax, lo, hi)
    return lo, hi


def packed(codes: Tensor, bits: int) -> Tensor:
    out = torch.full(((codes.numel() * bits + 7) // 8,), 99, dtype=torch.uint8)
    native.pack(codes, bits, out)
    return out


def packed_bytes(bits: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(bits * 10_007 + count)
    return torch.randint(0, 256, ((count * bits + 7) // 8,), dtype=torch.uint8, generator=generator)


def unpacked(data: Tensor, bits: int, signed: bool, count: int) -> Tensor:
    out = torch.full((count,), 99, dtype=torch.int8 if signed else torch.uint8)
    native.unpack(data, bits, signed, out)
    return out


def results() -> Iterator[tuple[str, Tensor]]:
    """Something from every kernel over shapes on either side of every vector width."""
    candidates = torch.linspace(1.0, 0.2, 37)
    neighbours = 0.9 + torch.arange(64) * 2.0**-24  # the last bit of every operation decides between these
    for rows, cols in SHAPES:
        x, wild = matrix(rows, cols), matrix(rows, cols, wild=True)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            yield f"minmax {dtype}", minmax(wild.to(dtype))
        for dtype, (low, high) in CODES.items():
            z = zero_points(rows, low, high)
            codes = quantized(wild, scales(rows), z, low, high, dtype)
            yield f"quantize {dtype}", codes
            values = torch.full(x.shape, 7.0)
            native.dequantize_rows(codes, scales(rows), z, values)
            yield f"dequantize {dtype}", values
        dynamic, scale = torch.full(x.shape, 99, dtype=torch.int8), torch.full((rows,), 7.0)
        native.quantize_rows_dynamic(wild, 127, dynamic, scale)
        yield from (("dynamic codes", dynamic), ("dynamic scales", scale))
        for bins in (7, 2048):
            yield f"histogram {bins}", histogram(wild, 1 / scales(rows), bins)
        if cols:
            yield from (("grown histogram", each) for each in grown_histogram([row[None] for row in wild / 9], 64))
        for symmetric in (False, True):
            for numbers in (x, wild):
                yield f"mse {symmetric}", torch.stack(searched(numbers, candidates, symmetric, -8, 7))
            for dtype, scale_type in ((torch.float32, "f16"), (torch.float16, "f32"), (torch.bfloat16, "bf16")):
                for bits in (2, 3, 4, 8):
                    done, codes, scale, zero = fused(x.to(dtype), symmetric, scale_type, bits)
                    if done:  # else what was written is of no use
                        yield from (("fused codes", codes), ("fused scales", scale), ("fused zeros", zero))
            yield f"mse near {symmetric}", torch.stack(searched(x, neighbours, symmetric, -8, 7))
        if cols:
            yield "refined clips", torch.stack(refined(x, 0, 15))
    counts = torch.randint(0, 99, (700,), generator=torch.Generator().manual_seed(1))
    for levels in (1, 7, 128):
        start, stop = torch.arange(40), 700 - torch.arange(40)
        found = torch.full((40,), 7.0, dtype=torch.float64)
        native.kl_divergences(counts.double(), start, stop, levels, 1e-4, found)
        yield "kl divergences", found
    grown = counts.reshape(7, 100).clone()
    native.rebin_rows(grown, torch.arange(7))
    yield "rebinned", grown
    for bits, count in itertools.product(range(1, 9), (0, 7, 64, 1001)):
        yield f"pack {bits}", packed(packed_bytes(8, count), bits)
    for bits, signed, count in itertools.product(range(1, 9), (False, True), (0, 7, 64, 1001)):
        yield f"unpack {bits}", unpacked(packed_bytes(bits, count), bits, signed, count)


def digests() -> dict[str, str]:
    hashes: dict[str, hashlib._Hash] = {}
    for name, tensor in results():
        hashes.setdefault(name, hashlib.sha256()).update(tensor.view(torch.uint8).numpy().tobytes())
    return {name: value.hexdigest() for name, value in hashes.items()}
