"""DFQ through ``fewbit.quantize``: one scale for all of a layer's weights destroys a network with skewed channels, and
equalization restores it; the analytic correction does without data what the empirical one does with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.evaluate import sqnr
from fewbit.integer.float_steps import analytic_means, prepare_network
from fewbit.nn import info
from fewbit.nn.fold import fold_batch_norm


class Norm(nn.BatchNorm2d):
    """Its running statistics are those of the data it sees once."""


def skewed() -> nn.Sequential:
    """Batch norms whose gammas differ by powers of 10 from channel to channel, taken back by the next layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), Norm(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), Norm(16), nn.ReLU(),
        nn.Conv2d(16, 8, 1), Norm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, Norm):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 8, 8))
        for norm, after in ((model[1], model[3]), (model[4], model[6])):
            factor = 10 ** torch.randn(16)
            norm.weight.copy_(factor)
            norm.bias.copy_(factor * torch.randn(16))
            shape = (-1, 1, 1, 1) if after.groups > 1 else (1, -1, 1, 1)
            after.weight.div_(factor.reshape(shape))
        norms = [layer for layer in model if isinstance(layer, Norm)]
        kept = [(n.weight.clone(), n.bias.clone()) for n in norms]
        model.train()(torch.randn(256, 3, 8, 8))
        for norm, (weight, bias) in zip(norms, kept):
            norm.weight.copy_(weight), norm.bias.copy_(bias)
    return model.eval()


@pytest.fixture(scope="module")
def network():
    return skewed()


def error(model, **how):
    data = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    made = fewbit.quantize(model, "W8A8-tensor", data, **how)
    with torch.no_grad():
        return sqnr(model(x), made(x)), info(made).notes


def test_equalization_restores_a_skewed_network(network):
    plain, _ = error(network, algorithm="rtn")
    even, notes = error(network, algorithm="equalize+rtn")
    assert plain < 20
    assert even > plain + 10
    assert "the channels between 3 pairs of layers were evened out" in notes


def test_the_analytic_correction_takes_back_the_mean_without_data(network):
    one = [torch.zeros(1, 3, 8, 8)]  # only traced
    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    shifts = {}
    for how in ("none", "analytic"):
        made = fewbit.quantize(network, "W4A16", one, algorithm="equalize+rtn", bias_correction=how)
        with torch.no_grad():
            shifts[how] = float((made(x) - network(x)).mean(0).norm())
    assert shifts["analytic"] < 0.6 * shifts["none"]
    assert "the biases of 4 layers were corrected" in info(made).notes


def test_means_are_those_of_the_data_that_the_norms_saw(network):
    work = copy.deepcopy(network)
    moments = fold_batch_norm(work).moments
    assert set(moments) == {"0", "3", "6"}
    means = analytic_means(work, torch.randn(2, 3, 8, 8), moments)
    with torch.no_grad():
        seen = work[:6](torch.randn(512, 3, 8, 8)).mean((0, 2, 3))
    assert torch.allclose(means["6"].mean()[0].float(), seen, rtol=0.15, atol=0.05 * float(seen.max()))


def test_absorb_alone_and_both(network):
    _, notes = error(network, algorithm="equalize+absorb", bias_correction="analytic")
    assert sum("evened out" in note or "handed on" in note for note in notes) == 2
    _, notes = error(network, algorithm="absorb+rtn")
    assert not any("evened out" in note for note in notes)


def test_it_goes_before_every_rounding(network):
    data = [torch.randn(8, 3, 8, 8)]
    for algorithm in ("equalize+gptq", "equalize+absorb+adaround"):
        made = fewbit.quantize(network, "W4A8", data, algorithm=algorithm)
        assert info(made).algorithm == algorithm
        assert bool(torch.isfinite(made(data[0])).all())


def test_what_cannot_be_done_is_said(network):
    with pytest.raises(FewbitError, match="equalize traces the network; pass data"):
        fewbit.quantize(network, "W8A16", algorithm="equalize")
    with pytest.raises(FewbitError, match="analytic bias correction traces the network"):
        fewbit.quantize(network, "W8A16", bias_correction="analytic")
    with pytest.raises(FewbitError, match="none was folded"):
        fewbit.quantize(nn.Linear(4, 4), "W8A16", [torch.randn(2, 4)], bias_correction="analytic")
    with pytest.raises(FewbitError, match="found no two layers"):
        fewbit.quantize(nn.Sequential(nn.Linear(4, 4)), "W8A16", [torch.randn(2, 4)], algorithm="equalize")
    with pytest.raises(FewbitError, match="bias correction is empirical"):
        fewbit.quantize(network, "W8A16", bias_correction="exact")
    with pytest.raises(FewbitError, match="PyTorch model"):
        fewbit.quantize("model.onnx", "W8A8", bias_correction="analytic")
    assert prepare_network(network, ["smoothquant"], None, {}) == ([], {})
