"""Equalization leaves the function as it is and evens out ranges; absorption is exact where its assumption holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewbit.integer.capture import capture
from fewbit.integer.chains import chains
from fewbit.integer.equalize import equalize


def skewed(activation: type[nn.Module], spread: float = 2.0) -> nn.Sequential:
    """Expand, depthwise, project, classify; channels of very different ranges."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 12, 1),
        activation(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        activation(),
        nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for index in (0, 2, 4):
            factor = torch.exp(spread * torch.randn(len(model[index].weight)))
            model[index].weight.mul_(factor.reshape(-1, 1, 1, 1))
            model[index].bias.mul_(factor)
    return model


def run(model, moments, absorb=False, scale=True):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return equalize(model, chains(capture(model, (x,)), model), moments, absorb, scale)


def spread_of(weight):
    """By how many powers of 2 the rows' ranges differ."""
    rows = weight.detach().flatten(1).abs().amax(1).log2()
    return float(rows.max() - rows.min())


def test_the_function_stays_and_ranges_even_out():
    model = skewed(nn.ReLU)
    before = copy.deepcopy(model)
    done = run(model, {})
    assert (done.equalized, done.absorbed) == (3, 0)
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        wanted, found = before(x), model(x)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    for index in (0, 2):
        assert spread_of(model[index].weight) < 0.5 * spread_of(before[index].weight)
    first, second = model[0].weight.flatten(1).abs().amax(1), model[2].weight.flatten(1).abs().amax(1)
    assert torch.allclose(first, second, rtol=1e-2)  # each channel has the same range on both sides


def test_channels_that_reach_a_clip_stay():
    model = skewed(nn.ReLU6, 0.5)
    before = copy.deepcopy(model)
    x = 0.02 * torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        low, mid = model[0](x), model[2](model[1](model[0](x)))
    moments = {
        name: (value.mean((0, 2, 3)), value.std((0, 2, 3)) + torch.tensor([9.0] * 6 + [0.0] * 6))
        for name, value in (("0", low), ("2", mid))
    }
    done = run(model, moments)
    assert done.equalized == 3
    assert torch.equal(model[0].weight[:6], before[0].weight[:6])  # as wide as they are said to be, they reach 6
    assert not torch.equal(model[0].weight[6:], before[0].weight[6:])
    with torch.no_grad():
        wanted, found = before(x), model(x)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    mean, std = done.moments["0"]
    factor = before[0].bias.double() / model[0].bias
    assert torch.allclose(mean * factor, moments["0"][0].double(), rtol=1e-4)
    assert torch.allclose(std * factor, moments["0"][1].double(), rtol=1e-4)


def test_without_batch_norm_nothing_passes_a_clip():
    model = skewed(nn.ReLU6)
    before = copy.deepcopy(model)
    assert run(model, {}).equalized == 1  # the projection and the classifier have nothing between them
    assert torch.equal(model[0].weight, before[0].weight)


@pytest.mark.parametrize(("activation", "high"), [(nn.ReLU, float("inf")), (nn.ReLU6, 200.0)])
def test_a_high_bias_is_handed_on_where_there_is_no_border(activation, high):
    model = skewed(activation, 0.1)
    if activation is nn.ReLU6:
        model[1], model[3] = nn.Hardtanh(0.0, high), nn.Hardtanh(0.0, high)
    with torch.no_grad():
        model[2].bias.fill_(4.0)
    before = copy.deepcopy(model)
    x = 0.1 * torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        inner = model[2](model[1](model[0](x)))
    outer = model[0](x).detach()
    moments = {name: (v.mean((0, 2, 3)), v.std((0, 2, 3))) for name, v in (("0", outer), ("2", inner))}
    done = run(model, moments, absorb=True, scale=False)
    assert (done.equalized, done.absorbed) == (0, 1)  # not into the depthwise convolution, which has a border
    mean, std = moments["2"]
    amount = (mean - 3 * std).clamp(min=0)
    assert torch.allclose(before[2].bias - model[2].bias, amount, atol=1e-5)
    assert float(amount.min()) > 0
    holds = (inner >= amount.reshape(1, -1, 1, 1)).flatten(1).all(1)
    wanted, found = before(x), model(x)
    assert torch.allclose(found[holds], wanted[holds], atol=1e-5)
    # What is below c is moved by the difference, and by no more.
    miss = (amount.reshape(1, -1, 1, 1) - inner).clamp(min=0)
    with torch.no_grad():
        bound = torch.einsum("oc,nchw->no", model[4].weight[:, :, 0, 0].abs(), miss) / miss[0, 0].numel()
        reach = bound @ model[7].weight.abs().t() + 1e-5
    assert bool(((found - wanted).abs() <= reach).all())
