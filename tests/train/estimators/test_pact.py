"""PACT against the paper's equation, value by value."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given

from fewbit.numbers.spec import QSpec
from fewbit.train.estimators import pact

from .by_hand import Case
from .conftest import cases


@given(cases())
def test_gradients_are_the_papers(case) -> None:
    spec, x, g, s, z = case
    zero = None if spec.symmetric else torch.tensor(z)
    quantizer = pact.input_quantizer(spec, (torch.tensor(s), zero), "x").double()
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor(s, dtype=torch.float64) * (spec.qmax - z))
    value = torch.tensor(x, requires_grad=True)
    out = quantizer(value)
    out.backward(torch.tensor(g))
    s = quantizer.grid(value)[0].item()  # α/(qmax − z)·(qmax − z) may differ from α in its last bit
    hand = Case(x, g, s, z, spec.qmin, spec.qmax)
    np.testing.assert_allclose(out.detach().numpy(), hand.value(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(value.grad.numpy(), hand.to_input())
    np.testing.assert_allclose(quantizer.alpha.grad.item(), hand.to_clip(), rtol=1e-9, atol=1e-9)


def test_one_sided_inputs_are_the_papers_case() -> None:
    """``clip(x, 0, α)``: the gradient of α is the sum over what lies above, and 0 below."""
    quantizer = pact.input_quantizer(QSpec.parse("uint2/tensor/asym"), (torch.tensor(1.0), torch.tensor(0)), "x")
    assert quantizer.alpha.item() == 3.0
    out = quantizer(torch.tensor([-1.0, 0.2, 2.6, 3.5, 9.0]))
    assert out.tolist() == [0.0, 0.0, 3.0, 3.0, 3.0]
    out.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert quantizer.alpha.grad.item() == 24.0


def test_a_clip_above_an_input_without_positive_values_stays_possible() -> None:
    quantizer = pact.input_quantizer(QSpec.parse("uint4/tensor/asym"), (torch.tensor(0.1), torch.tensor(15)), "x")
    assert quantizer(torch.full((3,), -0.5)).isfinite().all()


def test_the_first_batch_gives_the_clip() -> None:
    quantizer = pact.input_quantizer(QSpec.parse("uint8/tensor/asym"), None, "x")
    quantizer(torch.linspace(0, 4, 100))
    assert 3.5 < quantizer.alpha.item() <= 4.1
    assert quantizer.started
