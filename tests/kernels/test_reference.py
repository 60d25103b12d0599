"""The reference against NumPy's int64 and loops that say what is meant, one element at a time."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import reference
from fewbit.numbers import packing

INT32 = torch.iinfo(torch.int32)
RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int16: (-32768, 32767), torch.uint16: (0, 65535)}
FINITE = st.floats(-1e6, 1e6, width=32)


def codes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    low, high = RANGES[dtype]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


# --- products -----------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(1, 6)),
    st.sampled_from([torch.int8, torch.uint8]),
    st.sampled_from([torch.int8, torch.uint8, torch.int16]),
    st.sampled_from(["none", "scalar", "each"]),
    st.integers(0, 1000),
)
def test_int_matmul_is_the_product_of_centred_codes(
    shape: tuple[int, int, int], a_dtype: torch.dtype, b_dtype: torch.dtype, zero: str, seed: int
) -> None:
    m, k, n = shape
    a, b = codes(a_dtype, (m, k), seed), codes(b_dtype, (k, n), seed + 1)
    za: Tensor | int = {"none": 0, "scalar": 7, "each": codes(torch.uint8, (m, 1), seed + 2)}[zero]  # type: ignore[assignment]
    zb: Tensor | int = {"none": 0, "scalar": -9, "each": codes(torch.int8, (1, n), seed + 3)}[zero]  # type: ignore[assignment]
    result = reference.int_matmul(a, b, za, zb)
    wanted = (a.numpy().astype(np.int64) - np.asarray(za, np.int64)) @ (
        b.numpy().astype(np.int64) - np.asarray(zb, np.int64)
    )
    assert result.dtype == torch.int32
    assert np.array_equal(result.numpy(), wanted)


def test_int_matmul_over_leading_dimensions() -> None:
    a, b = codes(torch.uint8, (2, 3, 4, 5), 0), codes(torch.int8, (3, 5, 6), 1)
    za, zb = codes(torch.uint8, (2, 3, 4, 1), 2), codes(torch.int8, (3, 1, 6), 3)
    wanted = np.matmul(a.numpy().astype(np.int64) - za.numpy(), b.numpy().astype(np.int64) - zb.numpy())
    assert np.array_equal(reference.int_matmul(a, b, za, zb).numpy(), wanted)


@pytest.mark.parametrize("wanted", [INT32.max, INT32.min])
def test_int_matmul_holds_the_ends_of_int32_and_refuses_one_more(wanted: int) -> None:
    sign = 1 if wanted > 0 else -1
    a = torch.tensor([[sign * 32767, sign, sign]])
    b = torch.tensor([[65536], [65535 if wanted > 0 else 65536], [0]])
    assert reference.int_matmul(a, b).item() == wanted
    b[2] = 1
    with pytest.raises(FewbitError, match="does not fit int32; split K"):
        reference.int_matmul(a, b)


def test_an_overflow_by_a_zero_point_alone_is_refused() -> None:
    zeros = torch.zeros(1, 300, dtype=torch.uint8)
    assert reference.int_matmul(zeros, zeros.t(), 2000, 3000).item() == 300 * 2000 * 3000
    with pytest.raises(FewbitError, match="int32"):
        reference.int_matmul(zeros, zeros.t(), 2000, 4000)


def looped_conv(
    x: np.ndarray,
    weight: np.ndarray,
    zx: int,
    zw: np.ndarray,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> np.ndarray:
    """One output element at a time, one tap at a time; a tap outside the image meets the real 0."""
    batch, out_channels, each = x.shape[0], weight.shape[0], weight.shape[1]
    kernel, axes = weight.shape[2:], range(len(stride))
    out = [(x.shape[2 + a] + sum(padding[a]) - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in axes]
    result = np.zeros((batch, out_channels, *out), dtype=np.int64)
    for n, o, *position in itertools.product(range(batch), range(out_channels), *map(range, out)):
        group = o // (out_channels // groups)
        for c, *tap in itertools.product(range(each), *map(range, kernel)):
            place = [position[a] * stride[a] + tap[a] * dilation[a] - padding[a][0] for a in axes]
            if all(0 <= place[a] < x.shape[2 + a] for a in axes):
                value = int(x[(n, group * each + c, *place)]) - zx
                result[(n, o, *position)] += value * (int(weight[(o, c, *tap)]) - int(zw[o]))
    return result


CONVS = [
    # spatial, kernel, stride, padding, dilation, channels in, out, groups
    ((9,), (3,), (1,), ((1, 1),), (1,), 2, 3, 1),
    ((9,), (4,), (2,), ((3, 0),), (2,), 4, 4, 2),
    ((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2, 3, 1),
    ((6, 7), (3, 2), (2, 3), ((0, 2), (1, 0)), (1, 2), 4, 6, 2),
    ((5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3, 3, 3),
    ((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 3, 2, 1),
    ((4, 4, 3), (2, 3, 2), (1, 2, 1), ((1, 0), (0, 1), (1, 1)), (2, 1, 1), 2, 4, 2),
]


@pytest.mark.parametrize("case", CONVS, ids=lambda case: f"{len(case[0])}d-{case[1]}-g{case[-1]}")
@pytest.mark.parametrize("zero_points", [(0, 0), (200, 3), (255, "each")])
def test_int_conv_is_the_loop_over_its_taps(case: tuple, zero_points: tuple) -> None:
    spatial, kernel, stride, padding, dilation, channels, out, groups = case
    x = codes(torch.uint8, (2, channels, *spatial), 0)
    weight = codes(torch.int8, (out, channels // groups, *kernel), 1)
    zx, zw = zero_points
    each = codes(torch.int8, (out,), 2) if zw == "each" else torch.full((out,), zw)
    result = reference.int_conv(
        x, weight, zx, each if zw == "each" else zw, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    wanted = looped_conv(x.numpy(), weight.numpy(), zx, each.numpy(), stride, padding, dilation, groups)
    assert result.dtype == torch.int32
    assert np.array_equal(result.numpy(), wanted)


def test_the_border_of_a_convolution_is_the_real_zero() -> None:
    x = torch.full((1, 1, 3, 3), 77, dtype=torch.uint8)  # all real zeros when the zero point is 77
    weight = codes(torch.int8, (2, 1, 3, 3), 0)
    walk = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    assert not reference.int_conv(x, weight, 77, 5, **walk).any()  # type: ignore[arg-type]


def test_int_conv_refuses_what_does_not_fit_int32() -> None:
    x = torch.full((1, 66_000, 1), 255, dtype=torch.uint8)
    weight = torch.full((1, 66_000, 1), -128, dtype=torch.int8)
    with pytest.raises(FewbitError, match="int32"):
        reference.int_conv(x, weight, stride=(1,), padding=((0, 0),), dilation=(1,))


# --- requantize ---------------------------------------------------------------------------------


def exact_requantized(accumulator: int, multiplier: float, zero_point: int, qmin: int, qmax: int) -> int:
    return min(max(round(Fraction(accumulator) * Fraction(multiplier)) + zero_point, qmin), qmax)


@given(
    st.lists(st.integers(INT32.min, INT32.max), min_size=1, max_size=20),
    st.integers(1, 2**24 - 1),
    st.integers(1, 40),
    st.integers(-128, 127),
)
def test_requantize_is_exact_rational_arithmetic(
    accumulators: list[int], mantissa: int, shift: int, zero_point: int
) -> None:
    multiplier = mantissa * 2.0**-shift  # a float32 number; its product with an int32 may need more than float64 holds
    result = reference.requantize(torch.tensor(accumulators, dtype=torch.int32), multiplier, zero_point, -128, 127)
    # float64 keeps 53 bits: only products that large, far outside of the codes, are rounded before they are clamped.
    assert result.tolist() == [exact_requantized(a, multiplier, zero_point, -128, 127) for a in accumulators]
    assert result.dtype == torch.int32


def test_requantize_rounds_ties_to_even_and_adds_the_zero_point_after() -> None:
    accumulator = torch.arange(-5, 6, dtype=torch.int32)
    assert reference.requantize(accumulator, 0.5, 0, -128, 127).tolist() == [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]
    assert reference.requantize(accumulator, 0.5, 1, -128, 127).tolist() == [-1, -1, -1, 0, 1, 1, 1, 2, 3, 3, 3]


def test_requantize_takes_a_multiplier_and_a_zero_point_for_each_channel() -> None:
    accumulator = torch.tensor([[100, 100], [-100, -100]], dtype=torch.int32)
    result = reference.requantize(accumulator, torch.tensor([0.25, 10.0]), torch.tensor([3, 0]), 0, 255)
    assert result.tolist() == [[28, 255], [0, 0]]


# --- passes over rows ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1, max_size=4),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(-300, 300),
    st.sampled_from([(-128, 127), (0, 255), (-8, 7), (0, 65535), (-32768, 32767)]),
)
def test_quantize_rows_element_by_element(
    rows: list[tuple[float, float, float]], scale: float, zero_point: int, ends: tuple[int, int]
) -> None:
    x, s = torch.tensor(rows), torch.full((len(rows),), scale)
    z = torch.full((len(rows),), zero_point, dtype=torch.int32)
    result = reference.quantize_rows(x, s, z, *ends)
    wanted = [
        [min(max(round(float(np.float32(v) / np.float32(scale))) + zero_point, ends[0]), ends[1]) for v in row]
        for row in rows
    ]
    assert result.tolist() == wanted


def test_quantize_rows_uses_each_row_s_own_scale_and_zero_point() -> None:
    x = torch.tensor([[1.0, -2.0], [1.0, -2.0]])
    z = torch.tensor([0, 10], dtype=torch.int32)
    assert reference.quantize_rows(x, torch.tensor([0.5, 0.25]), z, -128, 127).tolist() == [[2, -4], [14, 2]]


def test_quantize_rows_dynamic_by_hand() -> None:
    x = torch.tensor([[12.7, -6.35, 0.0], [0.0, -0.0, 0.0], [1e-40, 0.0, -1e-40]])
    codes_, scale = reference.quantize_rows_dynamic(x, 127)
    assert codes_.tolist() == [[127, -64, 0], [0, 0, 0], [0, 0, 0]]  # -63.5 is a tie
    assert scale[0] == torch.tensor(12.7) / 127
    assert scale[1] == 1.0
    assert scale[2] == torch.finfo(torch.float32).tiny


def test_dequantize_rows_by_hand() -> None:
    q = torch.tensor([[0, 255], [7, 8]], dtype=torch.uint8)
    result = reference.dequantize_rows(q, torch.tensor([0.5, 2.0]), torch.tensor([10, 8], dtype=torch.int32))
    assert result.tolist() == [[-5.0, 122.5], [-2.0, 0.0]]
    assert result.dtype == torch.float32


def test_minmax_rows_tell_nan() -> None:
    result = reference.minmax_rows(torch.tensor([[1.0, -3.0], [math.nan, 5.0]], dtype=torch.float16))
    assert result[0].tolist() == [-3.0, 1.0]
    assert result[1].isnan().all()
    assert result.dtype == torch.float32


@given(st.lists(FINITE, min_size=0, max_size=30), st.integers(1, 9), st.floats(2.0**-10, 2.0**10, width=32))
def test_histogram_rows_counts_by_the_floor(values: list[float], bins: int, inv_width: float) -> None:
    counts = torch.full((1, bins), 3, dtype=torch.int64)
    reference.histogram_rows(torch.tensor([values]), torch.tensor([inv_width]), counts)
    wanted = [3] * bins
    for value in values:
        index = math.floor(float(np.float32(value) * np.float32(inv_width))) + bins // 2
        wanted[min(max(index, 0), bins - 1)] += 1
    assert counts[0].tolist() == wanted


@pytest.mark.parametrize(("symmetric", "qmin", "qmax"), [(True, -8, 7), (False, 0, 15), (False, -2, 1), (True, -1, 0)])
def test_mse_search_rows_finds_the_least_error(symmetric: bool, qmin: int, qmax: int) -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) ** 3
    candidates = torch.linspace(1.0, 0.1, 30)
    low, high = reference.mse_search_rows(x, candidates, symmetric, qmin, qmax)
    for row in range(3):
        ends = (min(float(x[row].min()), 0.0), max(float(x[row].max()), 0.0))
        if symmetric:
            ends = (-max(-ends[0], ends[1]), max(-ends[0], ends[1]))

        def error(a: float, b: float, row: int = row) -> float:
            scale = (b / qmax if qmax else -a / -qmin) if symmetric else (b - a) / (qmax - qmin)
            zero = 0 if symmetric else min(max(round(qmin - a / scale), qmin), qmax)
            codes_ = [min(max(round(v / scale) + zero, qmin), qmax) for v in x[row].tolist()]
            return sum((scale * (q - zero) - v) ** 2 for q, v in zip(codes_, x[row].tolist()))

        best = min(error(ends[0] * p, ends[1] * p) for p in candidates.tolist())
        assert error(float(low[row]), float(high[row])) <= best * (1 + 1e-4)


def test_mse_search_rows_leaves_zeros_alone() -> None:
    low, high = reference.mse_search_rows(torch.zeros(1, 5), torch.tensor([1.0, 0.5]), False, 0, 15)
    assert (low.item(), high.item()) == (0.0, 0.0)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_unpack_undoes_pack(bits: int) -> None:
    values = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(reference.unpack(packing.pack(values, bits), bits, len(values), True), values)


@pytest.mark.parametrize(
    ("qmin", "qmax", "dtype"),
    [
        (-128, 127, torch.int8),
        (-8, 7, torch.int8),
        (0, 127, torch.int8),
        (0, 128, torch.uint8),
        (0, 255, torch.uint8),
        (-1, 255, torch.int16),
        (-129, 0, torch.int16),
        (-32768, 32767, torch.int16),
        (-40000, 5, torch.int32),
    ],
)
def test_code_dtype_is_the_narrowest(qmin: int, qmax: int, dtype: torch.dtype) -> None:
    assert reference.code_dtype(qmin, qmax) == dtype
