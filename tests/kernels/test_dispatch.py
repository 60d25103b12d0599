"""Whichever backend runs, the bits are the reference's; and the choice between them."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import dispatch, reference
from fewbit.numbers import packing
from fewbit.numbers.spec import QSpec

SHAPES = [(1, 1), (3, 17), (2, 64), (5, 100), (1, 1001), (0, 4), (4, 0)]
compiled = pytest.mark.skipif(dispatch.backend() == "reference", reason="the kernels are not compiled")


def wild(*shape: int, seed: int = 0) -> Tensor:
    """Values of every magnitude, ties and zeros among them."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.ldexp(torch.randn(shape, generator=generator), torch.randint(-30, 30, shape, generator=generator))
    whole = torch.randint(-9, 9, shape, generator=generator) / 2
    return torch.where(torch.rand(shape, generator=generator) < 0.5, x, whole)


def some(rows: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points."""
    scale = torch.tensor([1.0, 0.25, 3.0, 1e-30, 0.0094])[torch.arange(rows) % 5]
    return scale, torch.tensor([0, 5, -7, 127, -128], dtype=torch.int32)[torch.arange(rows) % 5]


def layouts(x: Tensor) -> list[Tensor]:
    """The same values, contiguous and not."""
    wide = torch.stack([x, x], dim=-1)
    return [x, x.t().contiguous().t(), wide[..., 0]]


def test_the_backend_in_use_has_a_name() -> None:
    names = ("amx", "avx512vnni", "avx512", "avxvnni", "avx2", "neon", "portable", "reference")
    assert dispatch.backend() in names


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_minmax_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for x in layouts(wild(*shape).to(dtype)):
        assert torch.equal(dispatch.minmax_rows(x), reference.minmax_rows(x))


def test_minmax_rows_tell_nan_on_both_paths() -> None:
    x = wild(3, 40)
    x[1, 20] = torch.nan
    for y in layouts(x):
        result = dispatch.minmax_rows(y)
        assert result[1].isnan().all()
        assert not result[::2].isnan().any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", [(-128, 127), (0, 255), (-8, 7), (-32768, 32767), (0, 65535)])
def test_quantize_rows(shape: tuple[int, int], ends: tuple[int, int]) -> None:
    scale, zero = some(shape[0])
    for x in layouts(wild(*shape)):
        result, wanted = dispatch.quantize_rows(x, scale, zero, *ends), reference.quantize_rows(x, scale, zero, *ends)
        assert result.dtype == wanted.dtype
        assert torch.equal(result, wanted)


def test_quantize_rows_gives_nan_the_same_code_on_both_paths() -> None:
    x = torch.full((1, 40), torch.nan)
    scale, zero = torch.ones(1), torch.full((1,), 3, dtype=torch.int32)
    for ends in ((-128, 127), (0, 255), (-8, 7)):
        assert torch.equal(
            dispatch.quantize_rows(x, scale, zero, *ends), reference.quantize_rows(x, scale, zero, *ends)
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("qmax", [127, 7, 1])
def test_quantize_rows_dynamic(shape: tuple[int, int], qmax: int) -> None:
    if not shape[1]:
        pytest.skip("a row without values has no largest one")
    x = wild(*shape)
    x[::4] = 0
    x[1::4] *= 1e-38
    for y in layouts(x):
        for a, b in zip(dispatch.quantize_rows_dynamic(y, qmax), reference.quantize_rows_dynamic(y, qmax)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16])
def test_dequantize_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    scale, zero = some(shape[0])
    info = torch.iinfo(dtype)
    codes = torch.randint(info.min, info.max + 1, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for q in layouts(codes):
        assert torch.equal(dispatch.dequantize_rows(q, scale, zero), reference.dequantize_rows(q, scale, zero))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [1, 7, 256])
def test_histogram_rows(shape: tuple[int, int], bins: int) -> None:
    inv_width = bins / (8 * some(shape[0])[0]).clamp(min=1e-3)
    for x in layouts(wild(*shape)):
        ours, theirs = torch.ones(shape[0], bins, dtype=torch.int64), torch.ones(shape[0], bins, dtype=torch.int64)
        dispatch.histogram_rows(x, inv_width, ours)
        reference.histogram_rows(x, inv_width, theirs)
        assert torch.equal(ours, theirs)
        assert ours.sum() == x.numel() + ours.numel()


@pytest.mark.parametrize("bins", [4, 256])
def test_histogram_grow(bins: int) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(1, 700, generator=generator) * 2.0**e for e in (-3, 0, -9, 5)]
    parts += [torch.zeros(1, 3), -torch.ones(1, 1) * 2.0**6]
    states = []
    for grow in (dispatch.histogram_grow, reference.histogram_grow):
        counts, exponent = torch.zeros(1, bins, dtype=torch.int64), torch.tensor([-100])
        low, high = torch.full((1,), math.inf), torch.full((1,), -math.inf)
        state = (counts, exponent, low, high)
        for part in parts:
            assert grow(part, *state)
        before = [each.clone() for each in state]
        for bad in (math.nan, math.inf, -math.inf):
            assert not grow(torch.tensor([[1e9, bad]]), *state)
        assert all(map(torch.equal, before, state))
        states.append(state)
    assert all(map(torch.equal, *states))
    counts, exponent, low, high = states[0]
    everything = torch.cat(parts, 1)
    assert int(counts.sum()) == everything.numel()
    assert int(exponent) == 1 + int(everything.abs().max().log2())
    assert (float(low), float(high)) == (float(everything.min()), float(everything.max()))


@pytest.mark.parametrize("text", ["int8/tensor/sym", "int4/channel/asym", "uint8/tensor/asym", "int2/channel/sym"])
def test_mse_search_rows_agree_on_the_error(text: str) -> None:
    """Sums are taken in another order, so near equals may win in turn; what they cost is the same."""
    spec, x = QSpec.parse(text), torch.randn(4, 200, generator=torch.Generator().manual_seed(0)) ** 3
    candidates = torch.linspace(1.0, 0.1, 40)
    errors = []
    for low, high in (
        dispatch.mse_search_rows(x, candidates, spec),
        reference.mse_search_rows(x, candidates, spec.symmetric, int(spec.qmin), int(spec.qmax)),
    ):
        scale = high / spec.qmax if spec.symmetric else (high - low) / (spec.qmax - spec.qmin)
        zero = torch.zeros_like(scale) if spec.symmetric else torch.round(spec.qmin - low / scale)
        codes = (torch.round(x / scale[:, None]) + zero[:, None]).clamp(spec.qmin, spec.qmax)
        errors.append((scale[:, None] * (codes - zero[:, None]) - x).double().square().sum(1))
    assert torch.allclose(*errors, rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_unpack(bits: int, signed: bool) -> None:
    for count in (1, 7, 8, 1001):
        data = torch.randint(0, 256, (packing.packed_size(count, bits),), dtype=torch.uint8)
        assert torch.equal(dispatch.unpack(data, bits, count, signed), packing.unpack(data, bits, count, signed))
        spread = torch.stack([data, data], dim=1)[:, 0]
        assert torch.equal(dispatch.unpack(spread, bits, count, signed), packing.unpack(data, bits, count, signed))


def test_unpack_refuses_data_of_another_length() -> None:
    for data in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)):
        with pytest.raises(FewbitError, match="8 codes of 4 bits need 4 bytes"):
            dispatch.unpack(data, 4, 8, signed=True)


@pytest.mark.parametrize(
    "text", ["int4/channel/sym", "uint4/channel/asym/f16", "int3/channel/asym", "int8/channel/sym"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_minmax_quantize_rows(text: str, dtype: torch.dtype) -> None:
    spec = QSpec.parse(text)
    for x in layouts(torch.randn(9, 100, generator=torch.Generator().manual_seed(0)).to(dtype)):
        for bits in (spec.bits, 8):
            ours = dispatch.minmax_quantize_rows(x, spec, bits)
            theirs = reference.minmax_quantize_rows(x, spec, bits)
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e-44])
def test_minmax_quantize_rows_refuses_what_has_no_scale(bad: float) -> None:
    x = torch.zeros(3, 40)
    x[1, 20] = bad
    with pytest.raises(FewbitError):
        dispatch.minmax_quantize_rows(x, QSpec.parse("int4/channel/sym"), 4)


@pytest.mark.parametrize("qmax", [3, 15, 255])
def test_refine_clip_rows_agree_on_the_error(qmax: int) -> None:
    spec = QSpec.parse(f"uint{qmax.bit_length()}/channel/asym")
    x = torch.randn(30, 200, generator=torch.Generator().manual_seed(0)) ** 3
    x[::4] = x[::4].abs()
    moves, (lo, hi) = torch.tensor([0.5, 0.9, 1.1]), reference.minmax_rows(x).unbind(1)
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    begin = lo.clone(), hi.clone()
    ours = dispatch.refine_clip_rows(x, moves, 3, 0.99, spec, lo, hi)
    theirs = reference.refine_clip_rows(x, moves, 3, 0.99, 0, qmax, lo, hi)
    assert torch.equal(lo, begin[0])
    assert torch.equal(hi, begin[1])
    a, b = (reference._clip_errors(x, *ends, 0, qmax) for ends in (ours, theirs))
    assert ((a - b).abs() <= 1e-4 * b).float().mean() > 0.9  # a near tie may lead a row elsewhere
    assert abs(a.sum() - b.sum()) < 0.01 * b.sum()


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 2048])
def test_rebin_rows(bins: int) -> None:
    counts = torch.randint(0, 1 << 40, (9, bins), generator=torch.Generator().manual_seed(bins))
    doublings = torch.tensor([0, 1, 2, 3, 10, 11, 62, 1000, 1])
    wanted = reference.rebin_rows(counts, doublings)
    assert torch.equal(dispatch.rebin_rows(counts.clone(), doublings), wanted)
    assert torch.equal(wanted.sum(1), counts.sum(1))


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 16])
def test_pack(bits: int) -> None:
    dtype = torch.int16 if bits == 16 else torch.int8
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (7, 13), generator=torch.Generator().manual_seed(0))
    for q in layouts(codes.to(dtype)):
        stream = dispatch.pack(q, bits)
        assert torch.equal(stream, reference.pack(q, bits))
        assert torch.equal(dispatch.unpack(stream, bits, 91, signed=True).reshape(7, 13), q)


def test_pack_refuses_codes_of_another_width() -> None:
    with pytest.raises(FewbitError, match="codes of 4 bits have dtype"):
        dispatch.pack(torch.zeros(8, dtype=torch.int32), 4)


@compiled
@pytest.mark.parametrize(
    "name",
    [
        "minmax_rows",
        "quantize_rows",
        "quantize_rows_dynamic",
        "dequantize_rows",
        "minmax_quantize_rows",
        "refine_clip_rows",
        "pack",
        "unpack",
    ],
)
def test_the_compiled_kernel_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatch that always fell back would pass every test above."""
    called: list[str] = []
    native: Any = dispatch._native
    kernel = getattr(native, name)

    class Watched:
        def __getattr__(self, attribute: str) -> Any:
            if attribute == name:
                called.append(name)
                return kernel
            return getattr(native, attribute)

    monkeypatch.setattr(dispatch, "_native", Watched())
    x, (scale, zero) = wild(2, 40), some(2)
    {
        "minmax_rows": lambda: dispatch.minmax_rows(x),
        "quantize_rows": lambda: dispatch.quantize_rows(x, scale, zero, -128, 127),
        "quantize_rows_dynamic": lambda: dispatch.quantize_rows_dynamic(x, 127),
        "dequantize_rows": lambda: dispatch.dequantize_rows(x.to(torch.int8), scale, zero),
        "minmax_quantize_rows": lambda: dispatch.minmax_quantize_rows(torch.ones(2, 40), QSpec.parse("int4/g8/sym"), 4),
        "refine_clip_rows": lambda: dispatch.refine_clip_rows(
            x, scale, 1, 0.9, QSpec.parse("uint4/g8/asym"), -scale, scale
        ),
        "pack": lambda: dispatch.pack(torch.zeros(4, dtype=torch.uint8), 4),
        "unpack": lambda: dispatch.unpack(torch.zeros(4, dtype=torch.uint8), 4, 8, signed=True),
    }[name]()
    assert called == [name]


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"), [("", None), ("  ", None), ("avx2", "avx2"), (" Reference ", "reference")]
)
def test_forced_isa_reads_the_environment(value: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWBIT_ISA", value)
    assert dispatch.forced_isa() == wanted


def test_no_isa_is_forced_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWBIT_ISA", raising=False)
    assert dispatch.forced_isa() is None


def test_reference_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWBIT_ISA", "reference")
    assert dispatch._load_native() is None


def test_a_tree_that_was_never_built_runs_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    monkeypatch.setenv("FEWBIT_ISA", "")
    monkeypatch.setattr(importlib, "import_module", missing)
    assert dispatch._load_native() is None
    monkeypatch.setattr(dispatch, "_native", None)
    assert dispatch.backend() == "reference"
    x = wild(2, 40)
    assert torch.equal(dispatch.minmax_rows(x), reference.minmax_rows(x))


def test_an_instruction_set_that_cannot_run_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> ModuleType:
        raise ImportError("FEWBIT_ISA is 'mmx', but this machine can run only portable")

    monkeypatch.setenv("FEWBIT_ISA", "mmx")
    monkeypatch.setattr(importlib, "import_module", refused)
    with pytest.raises(FewbitError, match="FEWBIT_ISA is 'mmx'"):
        dispatch._load_native()
