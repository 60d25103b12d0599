"""Every float16 and bfloat16 number, under every format of 8 bits or fewer and both symmetries.

The oracle knows nothing of fewbit: NumPy float64, a sorted grid written down from the format's definition, a
binary search for the two neighbours, the nearer one, and between two equally near ones the even one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers import packing
from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.formats import all_formats, get_format
from fewbit.numbers.spec import QSpec

FLOATS = NDArray[np.float64]
SMALL = [fmt.name for fmt in all_formats() if fmt.bits <= 8]
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
RANGES = [
    (-1.2, 1.2),
    (-0.7, 1.9),
    (0.0, 6.0),
    (-3.0, 0.0),
    (-65504.0, 65504.0),
    (-1.3e38, 1.1e38),
    (2e-9, 7e-9),
]
FIXED_SCALES = [1.0, 2.0**-3, 2.0**9, 1.2 / 127, 0.0094, 3.0, 41.0, 61 / 128]  # 41 · (1/41) is not 1
SMALLEST = 2.0**-149  # of float32; a quotient below it is 0, which is a tie for the binary codebook alone

NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
    -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634
    0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""


def every(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)


def minifloat_grid(exponent_bits: int, mantissa_bits: int, largest: float) -> tuple[FLOATS, NDArray[np.int64]]:
    """Finite values in rising order and the code of each, from sign, exponent and mantissa; −0 left out."""
    bias = 2 ** (exponent_bits - 1) - 1
    pairs = []
    for code in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        whole = mantissa + (2**mantissa_bits if exponent else 0)
        value = whole * 2.0 ** (max(exponent, 1) - bias - mantissa_bits)
        if value <= largest:
            pairs.append((value, code))
            if value > 0:
                pairs.append((-value, code + 2 ** (exponent_bits + mantissa_bits)))
    pairs.sort()
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def grid_of(name: str) -> tuple[FLOATS, NDArray[np.int64]]:
    """The format's values in rising order and their codes."""
    if name in ("fp8_e4m3", "fp8_e5m2", "fp4_e2m1"):
        return minifloat_grid(*{"fp8_e4m3": (4, 3, 448.0), "fp8_e5m2": (5, 2, 57344.0), "fp4_e2m1": (2, 1, 6.0)}[name])
    if name in ("nf4", "ternary", "binary"):
        values = {"nf4": [float(v) for v in NF4.split()], "ternary": [-1.0, 0.0, 1.0], "binary": [-1.0, 1.0]}[name]
        return np.array(values), np.arange(len(values))
    bits = int(name.removeprefix("u").removeprefix("int"))
    codes = np.arange(2**bits) - (0 if name.startswith("u") else 2 ** (bits - 1))
    return codes.astype(np.float64), codes


def nearest(target: FLOATS, grid: FLOATS, even: NDArray[np.bool_]) -> tuple[NDArray[np.int64], FLOATS]:
    """Index of the nearest grid value, and the distance to the midpoint of the two neighbours (0: a tie)."""
    right = np.searchsorted(grid, target)
    low, high = np.clip(right - 1, 0, len(grid) - 1), np.clip(right, 0, len(grid) - 1)
    middle = (grid[low] + grid[high]) / 2
    up = (target > middle) | ((target == middle) & even[high])
    return np.where(up, high, low), np.where(low == high, np.inf, np.abs(target - middle))


def parameters(spec: QSpec) -> list[tuple[Tensor, Tensor | None]]:
    """Scales from ranges, as users get them, and scales that are exact, awkward or the lecture's."""
    pairs = [scale_and_zero_point(torch.tensor(lo), torch.tensor(hi), spec) for lo, hi in RANGES]
    fixed = [torch.tensor(scale) for scale in FIXED_SCALES]
    if spec.symmetric:
        return pairs + [(scale, None) for scale in fixed]
    ends = [spec.qmin, spec.qmax]
    dtype = torch.int32 if spec.format.is_integer else torch.float32
    return pairs + [(scale, torch.tensor(z).to(dtype)) for scale in fixed for z in ends]


def assert_only_float32_ties_differ(
    spec: QSpec, scale: float, z: float, x: FLOATS, wrong: NDArray[np.bool_], margin: FLOATS
) -> None:
    """The definition divides, and off the integers adds z, in float32: a tie there may go either way."""
    exact = np.abs(x / scale)
    unit = 2.0**-23 * (exact + (0.0 if spec.format.is_integer else abs(z))) + SMALLEST
    bad = wrong & (margin > unit)
    if spec.format.is_integer:  # the quotient, correctly rounded, is a tie and the exact one is not
        with np.errstate(over="ignore"):
            quotient = np.minimum(np.abs(x.astype(np.float32) / np.float32(scale)), 2**20)
        bad |= wrong & ~((quotient % 1 == 0.5) & (margin > 0))
    elif float(np.frexp(scale)[0]) == 0.5 and z == 0:  # a power of two divides exactly
        bad |= wrong
    assert not bad.any(), (str(spec), scale, z, x[bad][:5])
    assert (wrong & (margin > SMALLEST)).sum() <= 40, (str(spec), scale, z)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize("name", SMALL)
def test_every_finite_value_goes_to_the_nearest(name: str, symmetry: str, half: str) -> None:
    spec = QSpec.parse(f"{name}/tensor/{symmetry}")
    grid, grid_codes = grid_of(name)
    x = every(HALVES[half])
    x = x[torch.isfinite(x)]
    wide = x.to(torch.float64).numpy()
    for scale, zero_point in parameters(spec):
        z = 0.0 if zero_point is None else float(zero_point)
        exact = wide / float(scale)
        # Integers: round(x/s) is even on a tie, before z is added. Other grids: the code is even.
        even = (grid - z) % 2 == 0 if spec.format.is_integer else grid_codes % 2 == 0
        want, margin = nearest(exact, grid - z, even)
        q = quantize(x, spec, scale=scale, zero_point=zero_point)
        got = q.codes.to(torch.int64).numpy()
        minus_zero = 2 ** (spec.bits - 1)
        if name.startswith("fp"):
            got = np.where(got == minus_zero, 0, got)
        wrong = got != grid_codes[want]
        assert_only_float32_ties_differ(spec, float(scale), z, wide, wrong, margin)

        values = torch.from_numpy((grid - z)[np.searchsorted(grid, spec.format.decode(q.codes).numpy())])
        assert torch.equal(q.dequantize(), values.to(torch.float32) * scale), str(spec)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", SMALL)
def test_their_codes_survive_packing(name: str, half: str) -> None:
    spec = QSpec.parse(f"{name}/tensor/sym")
    x = every(HALVES[half])
    codes = quantize(x[torch.isfinite(x)], spec, scale=torch.tensor(0.37)).codes
    signed = spec.format.code_dtype == torch.int8
    data = packing.pack(codes, spec.bits)
    assert data.numel() == -(-codes.numel() * spec.bits // 8)
    assert torch.equal(packing.unpack(data, spec.bits, codes.numel(), signed), codes)


@pytest.mark.parametrize("half", HALVES)
def test_every_value_that_is_not_finite_is_refused(half: str) -> None:
    x = every(HALVES[half])
    bad = x[~torch.isfinite(x)]
    assert bad.numel() == {"float16": 2048, "bfloat16": 256}[half]
    for value in bad:
        kind = "NaN" if torch.isnan(value) else "infinity"
        with pytest.raises(FewbitError, match=rf"encoder\.0\.weight holds {kind}"):
            quantize(
                torch.stack([value, torch.zeros_like(value)]),
                "int8/tensor/sym",
                scale=torch.tensor(1.0),
                name="encoder.0.weight",
            )


def test_the_list_of_small_formats_is_the_one_promised() -> None:
    promised = [f"{u}int{bits}" for bits in range(1, 9) for u in ("", "u")] + [
        "fp8_e4m3",
        "fp8_e5m2",
        "fp4_e2m1",
        "nf4",
    ]
    assert set(promised) <= set(SMALL)
    assert all(get_format(name).bits <= 8 for name in SMALL)
