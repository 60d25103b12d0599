"""LSQ+ against the paper's equations, value by value."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given

from fewbit.numbers.spec import QSpec
from fewbit.train.estimators import lsq_plus
from fewbit.train.estimators.lsq_plus import LsqPlus

from .by_hand import Case
from .conftest import cases


@given(cases(symmetric=False))
def test_gradients_are_the_papers(case) -> None:
    spec, x, g, s, z = case
    quantizer = lsq_plus.input_quantizer(spec, (torch.tensor(s), torch.tensor(z)), "x").double()
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(s, dtype=torch.float64))
        quantizer.offset.copy_(torch.tensor(-s * z, dtype=torch.float64))
    value = torch.tensor(x, requires_grad=True)
    out = quantizer(value)
    out.backward(torch.tensor(g))
    hand = Case(x, g, s, z, spec.qmin, spec.qmax)
    np.testing.assert_allclose(out.detach().numpy(), hand.value(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(value.grad.numpy(), hand.to_input())
    scaled = 1 / math.sqrt(max(spec.qmax, 1.0))
    np.testing.assert_allclose(quantizer.offset.grad.item(), hand.to_offset() * scaled, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(quantizer.scale.grad.item(), hand.to_step_with_offset() * scaled, rtol=1e-8, atol=1e-8)


def test_the_zero_point_follows_the_offset_within_the_codes() -> None:
    quantizer = lsq_plus.input_quantizer(QSpec.parse("uint4/tensor/asym"), (torch.tensor(0.5), torch.tensor(3)), "x")
    assert isinstance(quantizer, LsqPlus)
    for offset, wanted in ((-1.5, 3), (-1.8, 4), (2.0, 0), (-100.0, 15)):
        with torch.no_grad():
            quantizer.offset.fill_(offset)
        scale, zero_point = quantizer.deployed(torch.zeros(1))
        assert (scale.item(), zero_point.item(), zero_point.dtype) == (0.5, wanted, torch.int32)
        assert 0.0 in quantizer(torch.zeros(2)).tolist()


def test_symmetric_specs_have_no_offset() -> None:
    spec = QSpec.parse("int4/channel/sym")
    assert not isinstance(lsq_plus.weight_quantizer(torch.ones(2, 2), spec, (torch.ones(2), None), "w"), LsqPlus)
