"""Every algorithm there is, found by itself, keeps the family's promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewbit import algorithms
from fewbit.algorithms import rtn
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

SPECS = ["int8/channel/sym", "int4/g32/asym", "int4/g32/sym", "int3/channel/asym", "int8/tensor/sym"]


@pytest.fixture(params=algorithms.names())
def algorithm(request):
    return algorithms.get(request.param)


def test_there_are_algorithms():
    assert "rtn" in algorithms.names()


def test_options_are_frozen_and_have_defaults(algorithm):
    options = algorithm.Options()
    field = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, field, None)


@pytest.mark.parametrize("text", SPECS)
def test_a_qtensor_of_the_same_shape_no_worse_than_rounding_to_nearest(algorithm, text):
    torch.manual_seed(0)
    weight, spec = torch.randn(12, 80), QSpec.parse(text)
    t = algorithm.quantize_weight(weight, spec, algorithm.Options(), "w")
    nearest = rtn.quantize_weight(weight, spec)
    assert t.shape == (12, 80)
    assert t.spec == spec
    error, least = ((q.dequantize() - weight).square().sum() for q in (t, nearest))
    assert error <= least * (1 + 1e-6)


def test_zero_rows_are_exact_and_the_same_input_gives_the_same_bytes(algorithm):
    weight = torch.randn(4, 32)
    weight[1] = 0
    first, second = (algorithm.quantize_weight(weight, QSpec.parse("int4/channel/sym"), None, "w") for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert float(first.scale[1]) == 1
    assert not first.codes[1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(algorithm, value):
    weight = torch.ones(2, 8)
    weight[0, 3] = value
    with pytest.raises(FewbitError, match="my weight"):
        algorithm.quantize_weight(weight, QSpec.parse("int8/channel/sym"), None, "my weight")
