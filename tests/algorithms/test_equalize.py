"""Factors even out ranges; what is absorbed is what relu does not touch; scaling and shifting are exact algebra."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import equalize

CASES = st.sampled_from([(1, 6, 4, (3, 3)), (4, 8, 1, (3, 3)), (2, 6, 2, (1, 1)), (1, 5, 7, ())])


def case(groups, out, per_group, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, per_group, *kernel, generator=generator, dtype=torch.float64), generator


def run(weight, groups, x):
    if weight.dim() == 2:
        return x @ weight.t()
    return torch.conv2d(x, weight, None, 1, 0, 1, groups)


@settings(max_examples=20, deadline=None)
@given(CASES, st.integers(0, 2**31))
def test_scaling_columns_is_scaling_the_input(shape, seed):
    groups, *rest = shape
    weight, generator = case(groups, *rest, seed)
    channels = groups * weight.shape[1]
    spatial = () if weight.dim() == 2 else (5, 6)
    x = torch.randn(2, channels, *spatial, generator=generator, dtype=torch.float64)
    factor = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1
    spread = factor.reshape(1, -1, *[1] * len(spatial))
    wanted = run(weight, groups, x * spread)
    assert torch.allclose(run(equalize.scaled_columns(weight, groups, factor), groups, x), wanted)
    moved = run(weight, groups, x + spread) - run(weight, groups, x)
    shift = equalize.shift(weight, groups, factor).reshape(1, -1, *[1] * len(spatial))
    assert torch.allclose(moved, shift.expand_as(moved))
    only = torch.stack(
        [
            run(
                weight,
                groups,
                torch.eye(channels)[i]
                .reshape(1, -1, *[1] * len(spatial))
                .double()
                .expand(1, channels, *weight.shape[2:]),
            )
            .abs()
            .sum()
            > 0
            for i in range(channels)
        ]
    )
    assert torch.equal(equalize.column_range(weight, groups) > 0, only)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_both_sides_get_the_same_range(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.exp(3 * torch.randn(9, generator=generator)) for _ in range(2))
    factor = equalize.factors(first, second)
    assert torch.allclose(first / factor, second * factor)
    assert torch.allclose(first / factor, (first.double() * second).sqrt())


def test_dead_channels_and_limits_are_kept():
    first, second = torch.tensor([0.0, 1.0, 4.0, 4.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0, 4.0])
    assert equalize.factors(first, second).tolist() == [1, 1, 2, 2, 0.5]
    least = torch.tensor([1e-3, 1e-3, 3.0, torch.inf, 0.75])
    assert equalize.factors(first, second, least).tolist() == [1, 1, 3, 1, 0.75]


def test_relu_does_not_touch_what_is_absorbed():
    mean, std = torch.tensor([5.0, 0.5, -4.0]), torch.tensor([1.0, 1.0, 1.0])
    amount = equalize.absorbed(mean, std)
    assert amount.tolist() == [2, 0, 0]
    x = mean + std * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    differs = (torch.relu(x - amount) + amount - torch.relu(x)).abs() > 1e-5
    share = differs.double().mean(0)
    assert 0.0005 < float(share[0]) < 0.002  # 0.00135 of a normal distribution lies 3 deviations below its mean
    assert share[1:].tolist() == [0, 0]
