"""Folded batch norm: fold, correct, freeze."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewbit.nn import fold_batch_norm
from fewbit.train.norm import FoldedNorm


def pair(bias: bool, affine: bool = True) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for _ in range(30):
        norm(conv(torch.randn(16, 3, 8, 8) * 2 + 1))
    return conv, norm


def folded(norm: FoldedNorm, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return norm(conv.bias, lambda f, b: conv._conv_forward(x, conv.weight * f.reshape(-1, 1, 1, 1), b))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_without_quantization_training_is_that_of_the_pair(bias: bool, affine: bool) -> None:
    conv, norm = pair(bias, affine)
    other_conv, other = copy.deepcopy(conv), FoldedNorm(copy.deepcopy(norm))
    x = torch.randn(8, 3, 8, 8)
    wanted, found = norm(conv(x)), folded(other, other_conv, x)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(other.norm.running_mean, norm.running_mean, atol=1e-5)
    assert torch.allclose(other.norm.running_var, norm.running_var, rtol=1e-4)
    upstream = torch.randn_like(wanted)
    wanted.backward(upstream)
    found.backward(upstream)
    for mine, theirs in zip([*other_conv.parameters(), *other.parameters()], [*conv.parameters(), *norm.parameters()]):
        assert torch.allclose(mine.grad, theirs.grad, atol=2e-3 * theirs.grad.abs().max().clamp(min=1e-2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["frozen", "evaluation"])
def test_frozen_it_is_the_running_statistics_and_they_stay(bias: bool, how: str) -> None:
    conv, norm = pair(bias)
    module = FoldedNorm(copy.deepcopy(norm))
    module.frozen = how == "frozen"
    module.train(how == "frozen")
    x = torch.randn(8, 3, 8, 8)
    before = module.norm.running_mean.clone()
    out = folded(module, conv, x)
    assert torch.allclose(out, norm.eval()(conv(x)), atol=1e-5)
    assert torch.equal(module.norm.running_mean, before)
    out.square().sum().backward()
    assert module.norm.weight.grad is not None
    assert module.norm.weight.grad.any()


def test_the_fold_is_that_of_post_training_quantization() -> None:
    conv, norm = pair(bias=True)
    factor, shift = FoldedNorm(norm).folded(conv.bias)
    theirs = nn.Sequential(copy.deepcopy(conv), copy.deepcopy(norm)).eval()
    fold_batch_norm(theirs)
    matrix = conv.weight.detach().double() * factor.reshape(-1, 1, 1, 1)
    assert torch.equal(matrix.float(), theirs[0].weight)
    assert torch.equal(shift.float(), theirs[0].bias)


def test_a_channel_whose_weight_is_0_can_come_back() -> None:
    conv, norm = pair(bias=False)
    with torch.no_grad():
        norm.weight[0] = 0
    module = FoldedNorm(norm)
    folded(module, conv, torch.randn(8, 3, 8, 8)).square().sum().backward()
    assert torch.isfinite(norm.weight.grad).all()
    out = folded(module, conv, torch.randn(8, 3, 8, 8))
    out[:, 0].sum().backward()
    assert torch.isfinite(out).all()
