"""The correction is exactly the mean of what the weight's error adds, measured by running the layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms.bias_correction import clipped_normal, correction, mode
from fewbit.calibrate.input_mean import InputMean
from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry

INFINITY = float("inf")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(1, 1), (3, 2), (2, 3)]),
    st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    st.sampled_from([((0, 0), (0, 0)), ((1, 1), (2, 0)), ((0, 1), (0, 2))]),
    st.sampled_from([(1, 1), (2, 1)]),
    st.integers(0, 2**31),
)
def test_a_convolutions_mean_shift_is_taken_back(groups, kernel, stride, padding, dilation, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 9, 8, generator=generator, dtype=torch.float64) + 0.5
    weight = torch.randn(8, 4 // groups, *kernel, generator=generator, dtype=torch.float64)
    rounded = torch.round(weight * 2) / 2
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    statistic = InputMean(geometry)
    statistic.update(x[:2])
    statistic.update(x[2:])
    padded = torch.nn.functional.pad(x, (*padding[1], *padding[0]))
    outputs = [torch.conv2d(padded, w, None, stride, 0, dilation, groups).mean((0, 2, 3)) for w in (weight, rounded)]
    shift = correction(weight.flatten(1), rounded.flatten(1), statistic.mean())
    assert torch.allclose(outputs[1] + shift, outputs[0], atol=1e-10)


def test_a_linear_layers_mean_shift_is_taken_back():
    x, weight = torch.randn(2, 5, 7) + 1, torch.randn(3, 7)
    rounded = weight.round()
    statistic = InputMean(None)
    statistic.update(x)
    outputs = [(x @ w.t()).double().mean((0, 1)) for w in (weight, rounded)]
    assert torch.allclose(outputs[1] + correction(weight, rounded, statistic.mean()), outputs[0], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-4, 4),
    st.floats(0.05, 4),
    st.sampled_from([(0.0, INFINITY), (0.0, 6.0), (-1.0, 1.0), (-INFINITY, 2.0), (-INFINITY, INFINITY)]),
)
def test_a_clipped_normal_is_that_of_many_samples(mean, std, bounds):
    count = 400_000
    x = mean + std * torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = x.clamp(*bounds)
    found, variance = clipped_normal(torch.tensor([mean]), torch.tensor([std]), *bounds)
    doubt = 6 * std / count**0.5
    assert abs(float(found) - float(seen.mean())) < doubt
    assert abs(float(variance) - float(seen.var())) < 6 * doubt * std + 1e-9


def test_relu_of_a_normal_is_the_papers_formula():
    mean, std = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    normal = torch.distributions.Normal(0, 1)
    ratio = -mean / std
    wanted = std * normal.log_prob(ratio).exp() + mean * (1 - normal.cdf(ratio))  # equation 20, with a = −β/γ
    assert torch.allclose(clipped_normal(mean, std, 0.0, float("inf"))[0], wanted, atol=1e-7)


def test_a_constant_is_clipped():
    mean, variance = clipped_normal(torch.tensor([-1.0, 3.0, 9.0]), torch.zeros(3), 0.0, 6.0)
    assert mean.tolist() == [0, 3, 6]
    assert variance.tolist() == [0, 0, 0]


def test_the_names_of_the_modes():
    assert (mode(True), mode(False), mode("analytic")) == ("empirical", "none", "analytic")
    with pytest.raises(FewbitError, match="empirical, analytic, none"):
        mode("exact")
