from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.integer.multiplier import Multiplier, rescale

REALS = st.floats(2.0**-28, 2.0**20)
INTEGERS = st.integers(-(2**31), 2**31 - 1)


def double_rounding(x: int, mantissa: int, exponent: int) -> int:
    """gemmlowp's two steps on Python's integers."""
    x = max(min(x << max(exponent, 0), 2**31 - 1), -(2**31))
    product = x * mantissa
    nudge = 2**30 if product >= 0 else 1 - 2**30
    high = abs(product + nudge) // 2**31 * (1 if product + nudge >= 0 else -1)
    shift = max(-exponent, 0)
    remainder, threshold = high & ((1 << shift) - 1), (((1 << shift) - 1) >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


def single_rounding(x: int, mantissa: int, exponent: int) -> int:
    shift = 31 - exponent
    return max(min((x * mantissa + (1 << (shift - 1))) >> shift, 2**31 - 1), -(2**31))


@given(REALS)
def test_a_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    made = Multiplier.of(real)
    mantissa, exponent = int(made.mantissa), int(made.exponent)
    assert 2**30 <= mantissa < 2**31
    assert abs(mantissa * 2.0 ** (exponent - 31) - real) <= 2.0**-31 * real


@given(st.lists(INTEGERS, min_size=1, max_size=20), REALS)
def test_both_roundings_are_those_of_python_integers(values: list[int], real: float) -> None:
    made = Multiplier.of(real)
    mantissa, exponent = int(made.mantissa), int(made.exponent)
    x = torch.tensor(values, dtype=torch.int64)
    assert rescale(x, made, "double").tolist() == [double_rounding(v, mantissa, exponent) for v in values]
    assert rescale(x, made, "single").tolist() == [single_rounding(v, mantissa, exponent) for v in values]


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-20, 1.0))
def test_single_is_the_nearest_integer_and_double_within_one_of_it(value: int, real: float) -> None:
    made, x = Multiplier.of(real), torch.tensor([value])
    exact = Fraction(int(made.mantissa)) * Fraction(2) ** (int(made.exponent) - 31) * value
    nearest = math.floor(exact + Fraction(1, 2))
    assert int(rescale(x, made, "single")) == nearest
    assert abs(int(rescale(x, made, "double")) - nearest) <= 1


def test_many_multipliers_broadcast() -> None:
    made = Multiplier.of(torch.tensor([0.5, 0.25, 1.0])).reshape(1, 3)
    assert rescale(torch.tensor([[8, 8, 8], [-8, -8, -8]]), made, "single").tolist() == [[4, 2, 8], [-4, -2, -8]]


def test_ties() -> None:
    x, half = torch.tensor([1, -1, 3, -3]), Multiplier.of(0.5)
    assert rescale(x, half, "single").tolist() == [1, 0, 2, -1]  # half up
    assert rescale(x, half, "double").tolist() == [1, 0, 2, -1]  # the doubling multiply rounds ½ up here
    quarter = Multiplier.of(0.25)
    assert rescale(torch.tensor([2, -2, 6, -6]), quarter, "double").tolist() == [1, -1, 2, -2]  # half away from 0


def test_what_is_too_small_gives_0() -> None:
    assert rescale(torch.tensor([2**31 - 1]), Multiplier.of(2.0**-40), "double").tolist() == [0]


@pytest.mark.parametrize("real", [0.0, -1.0, float("nan"), float("inf"), 2.0**31])
def test_what_is_no_multiplier(real: float) -> None:
    with pytest.raises(FewbitError, match="positive number"):
        Multiplier.of(real)


def test_an_unknown_rounding() -> None:
    with pytest.raises(FewbitError, match="single or double"):
        rescale(torch.tensor([1]), Multiplier.of(0.5), "up")  # type: ignore[arg-type]
