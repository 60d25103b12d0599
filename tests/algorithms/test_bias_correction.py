"""The correction is exactly the mean of what the weight's error adds, measured by running the layers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms.bias_correction import correction
from fewbit.calibrate.input_mean import InputMean
from fewbit.kernels.products import Geometry


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
