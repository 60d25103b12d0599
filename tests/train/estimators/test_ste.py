"""The straight-through estimator: its gradient, why it holds on average, and ranges that follow the data."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

import fewbit
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train.estimators import ste

from .conftest import cases


def test_the_docstring_s_expectation_is_what_it_says() -> None:
    assert doctest.testmod(ste).attempted >= 5
    assert doctest.testmod(ste).failed == 0


@given(cases())
def test_the_gradient_passes_where_the_code_is_not_clipped(case) -> None:
    spec, x, g, s, z = case
    zero = None if spec.symmetric else torch.tensor(z)
    value = torch.tensor(x, requires_grad=True)
    scale = torch.tensor(s, dtype=torch.float64)
    affine.straight_through(value, spec, scale, zero).backward(torch.tensor(g))
    code = np.rint(x / s) + z
    inside = (code >= spec.qmin) & (code <= spec.qmax)
    np.testing.assert_array_equal(value.grad.numpy(), np.where(inside, g, 0.0))


@pytest.mark.parametrize("spec", ["int8/channel/sym", "int2/g4/sym", "uint4/channel/asym", "ternary/channel/sym"])
def test_a_weight_s_range_follows_it_until_frozen(spec: str) -> None:
    parsed = QSpec.parse(spec)
    w = torch.randn(4, 8)
    low, high = torch.aminmax(parsed.granularity.to_blocks(w), dim=1)
    shape = parsed.granularity.scale_shape((4, 8))
    start = affine.scale_and_zero_point(0.8 * low.reshape(shape), 0.8 * high.reshape(shape), parsed)
    quantizer = ste.weight_quantizer(w, parsed, start, "w")
    assert torch.allclose(quantizer.deployed(w)[0], start[0])
    quantizer(3 * w)
    assert torch.allclose(quantizer.deployed(3 * w)[0], 3 * start[0], rtol=1e-5)
    quantizer.freeze(True)
    quantizer(9 * w)
    assert torch.allclose(quantizer.deployed(9 * w)[0], 3 * start[0], rtol=1e-5)


def test_an_input_s_range_is_a_moving_average_until_frozen() -> None:
    quantizer = ste.input_quantizer(QSpec.parse("uint8/tensor/asym"), None, "x")
    quantizer(torch.tensor([0.0, 2.55]))
    assert quantizer.deployed(torch.empty(0))[0].item() == pytest.approx(0.01)
    for _ in range(400):
        quantizer(torch.tensor([0.0, 5.1]))
    assert quantizer.deployed(torch.empty(0))[0].item() == pytest.approx(0.02, rel=0.02)
    quantizer.freeze(True)
    quantizer(torch.tensor([0.0, 500.0]))
    assert quantizer.deployed(torch.empty(0))[0].item() == pytest.approx(0.02, rel=0.02)


def test_evaluation_with_gradients_on_changes_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    prepared = fewbit.prepare_qat(nn.Sequential(nn.Linear(8, 2)), "W4A4", [x], estimator="ste").eval()
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    prepared[0].weight.data.mul_(0.5)
    for _ in range(3):
        prepared(10 * x).sum().backward()
    assert all(
        torch.equal(before[name], value) for name, value in prepared.state_dict().items() if name[2:] != "weight"
    )


def test_an_empty_first_batch_gives_no_range() -> None:
    quantizer = ste.input_quantizer(QSpec.parse("uint8/tensor/asym"), None, "x")
    quantizer(torch.empty(0, 3))
    assert not quantizer.started
