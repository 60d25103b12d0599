"""Floating formats against ml_dtypes and torch: every code, every neighbour, every tie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fewbit.numbers.minifloat import MinifloatFormat, known, parse

ml_dtypes = pytest.importorskip("ml_dtypes")

SMALL = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "fp4_e2m1": "float4_e2m1fn"}
NATIVE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def fmt_of(name: str) -> MinifloatFormat:
    fmt = parse(name)
    assert fmt is not None
    return fmt


def inputs(fmt: MinifloatFormat) -> Tensor:
    """Every half, every midpoint of two neighbours and the floats beside it, inside ±qmax."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    x = torch.cat([bits.view(torch.float16).float(), bits.view(torch.bfloat16).float()])
    grid = fmt.decode(torch.arange(2**fmt.bits, dtype=torch.uint8))
    grid = grid[torch.isfinite(grid)].unique()
    middle = (grid[1:] + grid[:-1]) / 2
    inf = torch.full_like(middle, torch.inf)
    x = torch.cat([x, grid, middle, torch.nextafter(middle, inf), torch.nextafter(middle, -inf)])
    return x[torch.isfinite(x) & (x.abs() <= fmt.qmax)]


@pytest.mark.parametrize("name", SMALL)
def test_every_code_has_the_value_of_ml_dtypes(name: str) -> None:
    fmt = fmt_of(name)
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    theirs = codes.numpy().view(getattr(ml_dtypes, SMALL[name])).astype(np.float32)
    np.testing.assert_array_equal(fmt.decode(codes).numpy(), theirs)
    np.testing.assert_array_equal(np.signbit(fmt.decode(codes).numpy()), np.signbit(theirs))


@pytest.mark.parametrize("name", SMALL)
def test_every_value_encodes_to_its_code(name: str) -> None:
    fmt = fmt_of(name)
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    values = fmt.decode(codes)
    finite = torch.isfinite(values)
    assert torch.equal(fmt.encode(values[finite]), codes[finite])


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    fmt = fmt_of(name)
    x = inputs(fmt)
    theirs = torch.from_numpy(x.numpy().astype(getattr(ml_dtypes, SMALL[name])).view(np.uint8).copy())
    rounded = fmt.round(x)
    assert torch.equal(rounded, fmt.decode(theirs))
    assert torch.equal(fmt.encode(rounded), theirs)
    assert torch.equal(fmt.round(x.double()), rounded.double())


@pytest.mark.parametrize(("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_rounding_is_that_of_torch(name: str, dtype: torch.dtype) -> None:
    fmt = fmt_of(name)
    x = inputs(fmt)
    assert torch.equal(fmt.round(x), x.to(dtype).float())


@pytest.mark.parametrize("name", SMALL)
def test_saturates_instead_of_infinity(name: str) -> None:
    fmt = fmt_of(name)
    x = torch.tensor([fmt.qmax * 1.01, 1e30, -fmt.qmax * 1.5, -3e38])
    assert fmt.round(x).tolist() == [fmt.qmax, fmt.qmax, -fmt.qmax, -fmt.qmax]


@pytest.mark.parametrize("fmt", known(), ids=lambda f: f.name)
def test_the_table_tells_the_grid(fmt: MinifloatFormat) -> None:
    if fmt.name in NATIVE:
        info = torch.finfo(NATIVE[fmt.name])
        assert (fmt.bits, fmt.qmax, fmt.smallest_step) == (
            info.bits,
            info.max,
            info.smallest_normal * info.eps,
        )
        assert fmt.code_dtype == NATIVE[fmt.name]
    else:
        values = fmt.decode(torch.arange(2**fmt.bits, dtype=torch.uint8))
        values = values[torch.isfinite(values)].unique()
        assert (fmt.qmin, fmt.qmax) == (values.min(), values.max())
        assert fmt.smallest_step == (values[1:] - values[:-1]).min()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_wide_formats_keep_torchs_own_numbers(name: str) -> None:
    fmt = fmt_of(name)
    x = torch.cat([torch.linspace(-70000, 70000, 4001), torch.logspace(-30, 4, 4001)])
    inside = x.clamp(fmt.qmin, fmt.qmax)
    assert torch.equal(fmt.round(x), inside.to(NATIVE[name]).float())
    assert torch.equal(fmt.decode(fmt.encode(fmt.round(x))), fmt.round(x))


def test_unknown_names_are_none() -> None:
    assert parse("fp8") is None
    assert parse("e4m3") is None
