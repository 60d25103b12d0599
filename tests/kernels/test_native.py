"""The compiled kernels against twins written here in plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import (
    CODES,
    SHAPES,
    SIZES,
    fused,
    histogram,
    matrix,
    minmax,
    packed,
    packed_bytes,
    quantized,
    refined,
    scales,
    searched,
    unpacked,
    zero_points,
)
from torch import Tensor

from fewbit import _native as native
from fewbit.kernels import reference
from fewbit.numbers import packing
from fewbit.numbers.spec import QSpec

torch.set_num_threads(1)


def quantized_twin(x: Tensor, s: Tensor, z: Tensor, qmin: int, qmax: int) -> Tensor:
    """The formula of the design, in torch and float32."""
    return (torch.round(x.float() / s[:, None]) + z[:, None].float()).clamp(qmin, qmax).to(torch.int32)


# --- minmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_minmax_is_exact(dtype: torch.dtype) -> None:
    for rows, cols in SHAPES:
        x = matrix(rows, cols, wild=True).to(dtype)
        out = minmax(x)
        if cols == 0:
            assert torch.equal(out, torch.tensor([[torch.inf, -torch.inf]]).expand(rows, 2))
        else:
            assert torch.equal(out, torch.stack([x.float().amin(1), x.float().amax(1)], 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_minmax_reads_every_16_bit_float(dtype: torch.dtype) -> None:
    x = torch.arange(-32768, 32768).to(torch.int16).view(dtype)[:, None].contiguous()
    wanted = x.float().expand(-1, 2).contiguous()
    out = minmax(x)
    assert torch.equal(out.isnan(), wanted.isnan())
    number = ~wanted.isnan()
    assert torch.equal(out[number].view(torch.int32), wanted[number].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("negative", [False, True])
def test_a_nan_anywhere_shows_in_both_and_in_its_row_alone(dtype: torch.dtype, negative: bool) -> None:
    for cols in SIZES[1:-1]:
        x = matrix(cols + 1, cols).to(dtype)
        bits = x.view(torch.int32 if x.itemsize == 4 else torch.int16)
        bits[torch.arange(cols), torch.arange(cols)] = -1 if negative else torch.iinfo(bits.dtype).max
        out = minmax(x)
        assert out[:cols].isnan().all()
        assert not out[cols].isnan().any()


# --- quantize, dequantize -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("floats", [torch.float32, torch.float16, torch.bfloat16])
def test_quantize_equals_the_formula_bit_for_bit(dtype: torch.dtype, floats: torch.dtype) -> None:
    low, high = CODES[dtype]
    for (rows, cols), (qmin, qmax) in itertools.product(SHAPES, [(low, high), (max(low, -8), 7)]):
        x, s, z = matrix(rows, cols, wild=True), scales(rows), zero_points(rows, low, high)
        x = x.to(floats).clamp(-6e4, 6e4)
        codes = quantized(x, s, z, qmin, qmax, dtype)
        assert torch.equal(codes.to(torch.int32), quantized_twin(x, s, z, qmin, qmax)), (rows, cols)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**-100])
def test_every_tie_goes_to_the_even_code(dtype: torch.dtype, scale: float) -> None:
    low, high = CODES[dtype]
    whole = torch.arange(low - 3, high + 3)
    x = (whole + 0.5)[None].float() * scale
    codes = quantized(x, torch.tensor([scale]), torch.zeros(1, dtype=torch.int32), low, high, dtype)
    assert torch.equal(codes[0].to(torch.int64), (whole + whole % 2).clamp(low, high))


def test_quotients_that_overflow_saturate() -> None:
    x = torch.tensor([[3e38, -3e38, 0.0, 1.0, -1.0]])
    codes = quantized(x, torch.tensor([1.2e-38]), torch.tensor([5], dtype=torch.int32), -8, 7, torch.int8)
    assert codes.tolist() == [[7, -8, 5, 7, -8]]


def test_a_nan_quotient_gives_qmin() -> None:
    x = torch.tensor([[torch.nan, 0.0] * 40])
    codes = quantized(x, torch.zeros(1), torch.tensor([2], dtype=torch.int32), -5, 7, torch.int8)
    assert (codes == -5).all()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(2.0**-126, 2.0**100, width=32),
    st.integers(-(1 << 20), 1 << 20),
)
def test_quantize_equals_the_formula_for_any_numbers(values: list[float], scale: float, zero_point: int) -> None:
    x, s = torch.tensor([values]), torch.tensor([scale])
    z = torch.tensor([zero_point], dtype=torch.int32)
    codes = quantized(x, s, z, -128, 127, torch.int8)
    assert torch.equal(codes.to(torch.int32), quantized_twin(x, s, z, -128, 127))


@pytest.mark.parametrize("qmax", [1, 7, 127])
def test_dynamic_quantize_takes_each_row_s_own_scale(qmax: int) -> None:
    for (rows, cols), wild in itertools.product(SHAPES, [False, True]):
        x = matrix(rows, cols, wild=wild)
        x[1::7] = 0.0
        out, scale = torch.full(x.shape, 99, dtype=torch.int8), torch.full((rows,), 7.0)
        native.quantize_rows_dynamic(x, qmax, out, scale)
        amax = x.abs().amax(1) if cols else torch.zeros(rows)
        wanted = torch.where(amax > 0, amax / qmax, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        assert torch.equal(scale, wanted)
        assert torch.equal(out.int(), quantized_twin(x, scale, torch.zeros(rows), -qmax, qmax))


@pytest.mark.parametrize("dtype", CODES)
def test_dequantize_equals_the_formula_bit_for_bit(dtype: torch.dtype) -> None:
    low, high = CODES[dtype]
    for rows, cols in SHAPES:
        s, z = scales(rows), zero_points(rows, low, high)
        codes = matrix(rows, cols).mul(high).clamp(low, high).int()
        out = torch.full((rows, cols), 7.0)
        native.dequantize_rows(codes.to(dtype), s, z, out)
        wanted = s[:, None] * (codes - z[:, None]).float()
        assert torch.equal(out.view(torch.int32), wanted.view(torch.int32))


# --- histogram ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 2048])
@pytest.mark.parametrize("wild", [False, True])
def test_histogram_counts_every_value_once(bins: int, wild: bool) -> None:
    for rows, cols in [*SHAPES, (1, 5000), (2, 1025)]:
        x, inv_width = matrix(rows, cols, wild=wild), (bins / (8 * scales(rows))).clamp(max=1e38)
        x[::3] = x[::3].clamp(min=0.0)  # what a ReLU leaves: many values in one bin
        index = (torch.floor(x * inv_width[:, None]) + bins // 2).clamp(0, bins - 1).to(torch.int64)
        wanted = torch.full((rows, bins), 5).scatter_add_(1, index, torch.ones_like(index))
        assert torch.equal(histogram(x, inv_width, bins), wanted), (rows, cols)


@pytest.mark.parametrize("bins", [16384, 1 << 17])
def test_histogram_of_a_long_row(bins: int) -> None:
    """More values than a 16-bit counter holds in one bin, others alone in theirs, and zeros."""
    x = torch.cat([torch.full((150_000,), 6.0), torch.zeros(70_000), torch.linspace(-8, 7.99, 100_001)])[None]
    index = (torch.floor(x * (bins / 16)) + bins // 2).to(torch.int64)
    wanted = torch.full((1, bins), 5).scatter_add_(1, index, torch.ones_like(index))
    for _ in range(2):  # what one row leaves behind would count in the next
        assert torch.equal(histogram(x, torch.tensor([bins / 16]), bins), wanted)


def test_a_bin_holds_its_lower_edge() -> None:
    edges = torch.arange(-5, 6)[None] * 0.25
    assert (histogram(edges, torch.tensor([4.0]), 8) - 5).tolist() == [[2, 1, 1, 1, 1, 1, 1, 3]]


# --- mse search ---------------------------------------------------------------------------------


def clip_errors(x: Tensor, candidates: Tensor, symmetric: bool, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Upper ends ``[T, R]`` of the clips and their squared errors in float64."""
    x = x.double()
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    tops = candidates.double()[:, None] * high
    bottoms = candidates.double()[:, None] * low
    scale = tops / qmax if symmetric else (tops - bottoms) / (qmax - qmin)
    zero = torch.zeros_like(scale) if symmetric else torch.round(qmin - bottoms / scale).clamp(qmin, qmax)
    codes = (torch.round(x / scale[..., None]) + zero[..., None]).clamp(qmin, qmax)
    return tops, (scale[..., None] * (codes - zero[..., None]) - x).square().sum(-1)


@pytest.mark.parametrize(
    ("symmetric", "qmin", "qmax"), [(True, -8, 7), (True, -128, 127), (False, 0, 15), (False, -128, 127)]
)
@pytest.mark.parametrize("n_candidates", [1, 15, 16, 17, 80])
def test_mse_search_finds_the_best_clip(symmetric: bool, qmin: int, qmax: int, n_candidates: int) -> None:
    candidates = torch.linspace(1.0, 0.2, n_candidates)
    for rows, cols in itertools.product((1, 2, 17), (1, 2, 15, 33, 256, 1000)):
        x = matrix(rows, cols, seed=n_candidates) ** 3
        x[::5] = x[::5].abs()
        lo, hi = searched(x, candidates, symmetric, qmin, qmax)
        tops, errors = clip_errors(x, candidates, symmetric, qmin, qmax)
        chosen = (tops - hi.double()).abs().argmin(0)
        got = errors.gather(0, chosen[None])[0]
        assert (got <= errors.amin(0) * (1 + 1e-4) + 1e-9 * x.double().square().sum(1)).all()
        ends = torch.stack([x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)])
        if symmetric:
            ends = torch.stack([-ends.abs().amax(0), ends.abs().amax(0)])
        p = candidates[chosen]
        nothing = ends[1] == 0  # no value above zero: the upper end tells nothing about p
        assert torch.equal(hi, ends[1] * p)
        assert torch.equal(lo[~nothing], (ends[0] * p)[~nothing])


def test_the_first_of_equal_clips_wins() -> None:
    x = torch.tensor([[-4.0, 2.0, 1.0]])  # exact at scale 1 (p = 1) and at scale 1/2 (p = 1/2), as qmin is -8
    assert searched(x, torch.tensor([0.3, 0.5, 1.0]), True, -8, 4)[1].tolist() == [2.0]
    assert searched(x, torch.tensor([0.3, 1.0, 0.5]), True, -8, 4)[1].tolist() == [4.0]


def test_the_choice_does_not_depend_on_the_unit_of_the_values() -> None:
    x, candidates = matrix(20, 100), torch.linspace(1.0, 0.2, 50)
    lo, hi = searched(x, candidates, False, 0, 7)
    for exponent in (-100, 100):
        unit = torch.tensor(2.0**exponent)
        assert torch.equal(torch.stack(searched(x * unit, candidates, False, 0, 7)), torch.stack([lo, hi]) * unit)


def test_rows_without_a_usable_scale() -> None:
    x = torch.zeros(4, 20)
    x[1, 3], x[2, 3], x[3, 3] = 1e-44, torch.nan, -3.4e38
    x[3, 4] = 3.4e38  # p = 1 overflows the range, p = 0.5 does not
    lo, hi = searched(x, torch.tensor([1.0, 0.5]), False, 0, 15)
    assert (lo[0], hi[0]) == (0.0, 0.0)
    assert hi[1] == x[1, 3]
    assert hi[2].isnan()
    assert hi[3] == 1.7e38
    assert searched(torch.zeros(2, 0), torch.ones(1), True, -8, 7)[1].tolist() == [0.0, 0.0]


def test_a_clip_with_a_subnormal_scale_is_passed_over() -> None:
    unit = 0.6e-38  # subnormal
    x = torch.full((1, 400), unit)
    x[0, 0] = 14 * unit  # p = 1 gives scale 2 units; p = 1/2 one unit, and a smaller error
    assert searched(x * 2.0**20, torch.tensor([1.0, 0.5]), True, -8, 7)[1].item() == x.max() * 2.0**19
    assert searched(x, torch.tensor([1.0, 0.5]), True, -8, 7)[1].item() == x.max()


def test_one_bit_codes_take_their_scale_from_the_negative_side() -> None:
    lo, hi = searched(torch.tensor([[-2.0, 0.0, -2.0]]), torch.tensor([0.5, 1.0]), True, -1, 0)
    assert (lo.item(), hi.item()) == (-2.0, 2.0)


def test_refining_never_makes_a_clip_worse() -> None:
    x = matrix(40, 70) ** 3
    x[::3] = x[::3].abs()
    lo, hi = minmax(x)[:, 0].clamp(max=0), minmax(x)[:, 1].clamp(min=0)
    before = reference._clip_errors(x, lo, hi, 0, 7)
    after = reference._clip_errors(x, *refined(x, 0, 7), 0, 7)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.9 * before.sum()


# --- range and codes in one pass ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_the_pass_of_range_and_codes_equals_its_twin(
    dtype: torch.dtype, scale_type: str, symmetry: str, bits: int
) -> None:
    spec = QSpec.parse(f"int{bits}/channel/{symmetry}/{scale_type}")
    for rows, cols in itertools.product((1, 2, 9, 33), (1, 2, 8, 15, 64, 1000, 3000)):
        x = (matrix(rows, cols) ** 3).to(dtype)
        x[::5] = x[::5].abs()
        x[::7] = 0
        x[3::11] *= 1e-4  # subnormal float16, and scales below its normal numbers
        done, codes, scale, zero = fused(x, spec.symmetric, scale_type, bits)
        wanted, wanted_scale, wanted_zero = reference.minmax_quantize_rows(x, spec, bits)
        assert done
        assert torch.equal(scale, wanted_scale)
        assert torch.equal(codes, wanted)
        assert (zero == 7).all() if wanted_zero is None else torch.equal(zero, wanted_zero)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e-44])
def test_a_row_without_a_scale_is_told(bad: float) -> None:
    x = torch.zeros(20, 40)
    x[13, 20] = bad
    assert not fused(x, True, "f32", 4)[0]
    assert not fused(x, False, "f32", 4)[0]


def test_a_scale_beyond_its_type_is_told() -> None:
    assert fused(torch.full((1, 8), 65504.0 * 7), True, "f16", 4)[0]
    assert not fused(torch.full((1, 8), 65520.0 * 7), True, "f16", 4)[0]


# --- pack and unpack ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_pack_equals_the_bit_stream_and_unpack_takes_it_back(bits: int) -> None:
    for count in (*range(40), 63, 64, 65, 127, 1000, 70_001):
        codes = packed_bytes(8, count)  # what lies above `bits` bits is dropped
        out = packed(codes, bits)
        assert torch.equal(out, packing.pack(codes, bits)), count
        assert torch.equal(unpacked(out, bits, False, count), codes & ((1 << bits) - 1))


# --- unpack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_unpack_equals_the_bit_stream(bits: int, signed: bool) -> None:
    for count in (*range(40), 63, 64, 65, 127, 1000, 4096):
        data = packed_bytes(bits, count)
        stream = (data[:, None].int() >> torch.arange(8)) & 1
        wanted = (stream.reshape(-1)[: count * bits].reshape(count, bits) << torch.arange(bits)).sum(1)
        if signed:
            wanted = torch.where(wanted >= 1 << (bits - 1), wanted - (1 << bits), wanted)
        assert torch.equal(unpacked(data, bits, signed, count).long(), wanted), count
