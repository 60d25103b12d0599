"""LSQ against the paper's equations, value by value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from fewbit.numbers.spec import QSpec
from fewbit.train.estimators import lsq

from .by_hand import Case
from .conftest import cases


@given(cases())
def test_gradients_are_the_papers(case) -> None:
    spec, x, g, s, z = case
    zero = None if spec.symmetric else torch.tensor(z)
    quantizer = lsq.input_quantizer(spec, (torch.tensor(s), zero), "x").double()
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(s, dtype=torch.float64))
    value = torch.tensor(x, requires_grad=True)
    out = quantizer(value)
    out.backward(torch.tensor(g))
    hand = Case(x, g, s, z, spec.qmin, spec.qmax)
    np.testing.assert_allclose(out.detach().numpy(), hand.value(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(value.grad.numpy(), hand.to_input())
    scaled = 1 / math.sqrt(spec.qmax)  # each value is a sample: N = 1
    np.testing.assert_allclose(quantizer.scale.grad.item(), hand.to_step() * scaled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("grain", "values"), [("tensor", 24), ("channel", 6), ("g3", 3)])
def test_each_step_of_a_weight_gets_its_own_blocks_gradient_scaled_by_the_paper_s_g(grain: str, values: int) -> None:
    spec = QSpec.parse(f"int3/{grain}/sym")
    generator = torch.Generator().manual_seed(3)
    w, g = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    shape = spec.granularity.scale_shape((4, 6))
    s = torch.rand(shape, dtype=torch.float64, generator=generator) * 0.3 + 0.1
    quantizer = lsq.weight_quantizer(w, spec, (s, None), "w").double()
    with torch.no_grad():
        quantizer.scale.copy_(s)
    quantizer(w).backward(g)
    rows_w, rows_g = spec.granularity.to_blocks(w).numpy(), spec.granularity.to_blocks(g).numpy()
    steps = [Case(a, b, float(c), 0.0, -4, 3).to_step() for a, b, c in zip(rows_w, rows_g, s.reshape(-1))]
    wanted = np.array(steps) / math.sqrt(values * 3)
    np.testing.assert_allclose(quantizer.scale.grad.reshape(-1).numpy(), wanted, rtol=1e-10)


def test_features_of_a_sample_scale_the_gradient_of_an_input_whatever_the_batch() -> None:
    quantizer = lsq.input_quantizer(QSpec.parse("uint4/tensor/asym"), None, "x")
    for batch in (1, 7):
        assert quantizer.gradient_scale(torch.zeros(batch, 3, 5, 5)) == 1 / math.sqrt(75 * 15)


def test_a_step_that_training_carries_below_zero_counts_by_its_magnitude() -> None:
    quantizer = lsq.input_quantizer(QSpec.parse("int4/tensor/sym"), (torch.tensor(0.5), None), "x")
    with torch.no_grad():
        quantizer.scale.fill_(-0.25)
    x = torch.tensor([0.3, 0.6])
    assert quantizer(x).tolist() == [0.25, 0.5]
    assert quantizer.deployed(x)[0].item() == 0.25


def test_a_frozen_step_gets_no_gradient_and_16_bit_scales_are_deployed_rounded() -> None:
    spec = QSpec.parse("int4/g4/sym/f16")
    w = torch.randn(3, 8)
    quantizer = lsq.weight_quantizer(w, spec, (torch.full((3, 2), 0.1), None), "w")
    quantizer(w).sum().backward()
    assert quantizer.scale.grad is not None
    assert torch.equal(quantizer.deployed(w)[0], torch.full((3, 2), 0.1).half().float())
    quantizer.frozen, quantizer.scale.grad = True, None
    out = quantizer(w.requires_grad_())
    out.sum().backward()
    assert quantizer.scale.grad is None
