"""Data-free refinement: what it promises to lower falls, at every power and granularity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import hqq, rtn
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["int4/g16/asym/f16", "int3/g16/sym", "int2/channel/asym", "int4/tensor/asym", "nf4/g16/sym"]),
    st.sampled_from(hqq._POWERS),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_it_is_never_worse_than_rounding_to_nearest(text, power, columns, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, spec = torch.randn(6, columns, generator=generator).pow(3), QSpec.parse(text)
    options = hqq.Options(power)
    t = hqq.quantize_weight(weight, spec, options, "w")
    ours = hqq.objective(t.dequantize() - weight, options)
    for calibrator in ("minmax", "mse"):
        nearest = rtn.quantize_weight(weight, spec, rtn.Options(calibrator))
        assert ours <= hqq.objective(nearest.dequantize() - weight, options) * (1 + 1e-5)


@pytest.mark.parametrize("power", hqq._POWERS)
def test_searching_and_refining_each_help(power: int) -> None:
    torch.manual_seed(0)
    weight, spec = torch.randn(64, 256), QSpec.parse("int3/g64/asym")
    errors = []
    for options in (hqq.Options(power, 1, 0), hqq.Options(power, 7, 0), hqq.Options(power, 7, 6)):
        t = hqq.quantize_weight(weight, spec, options, "w")
        errors.append(hqq.objective(t.dequantize() - weight, options))
    assert errors[2] < errors[1] <= errors[0]
    nearest = rtn.quantize_weight(weight, spec, rtn.Options("minmax")).dequantize() - weight
    assert errors[2] < 0.95 * hqq.objective(nearest, hqq.Options(power))


def test_the_objective_is_the_sum_of_powers() -> None:
    assert hqq.objective(torch.tensor([1.0, -2.0]), hqq.Options(3)) == 9
    assert hqq.objective(torch.tensor([1.0, -2.0]), hqq.Options(2)) == 5


def test_tensors_of_any_shape() -> None:
    x = torch.randn(2, 3, 4, 5)
    t = hqq.quantize_weight(x, QSpec.parse("int4/g2/asym"))
    assert t.dequantize().shape == x.shape


def test_wrong_options_are_told() -> None:
    for options in (hqq.Options(power=1), hqq.Options(clips=0), hqq.Options(turns=-1)):
        with pytest.raises(FewbitError, match="hqq"):
            hqq.quantize_weight(torch.ones(2, 2), QSpec.parse("int4/channel/sym"), options)
