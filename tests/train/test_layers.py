"""Layers in training stay what they were to everybody else, and are evaluated as they will be deployed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fewbit
from fewbit.train.layers import TrainedLayer, deployed_layer, float_layer, trained_class, trained_layers

from .samples import HalvedLinear, OneSidedConv2d, fit, net, pictures

X, _ = pictures(32, seed=9)


def test_classes_derive_from_the_user_s_own() -> None:
    model = nn.Sequential(OneSidedConv2d(3, 4, 2), nn.Flatten(), nn.Linear(256, 4))
    prepared = fewbit.prepare_qat(model, "W4A16")
    assert isinstance(prepared[0], OneSidedConv2d)
    assert isinstance(prepared[2], nn.Linear)
    assert prepared[2].out_features == 4
    assert trained_class(OneSidedConv2d) is type(prepared[0])
    assert [name for name, _ in prepared.named_parameters() if not name.endswith("scale")] == [
        name for name, _ in model.named_parameters()
    ]


def test_copies_are_whole_and_can_be_sent_to_other_processes() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X]).eval()
    wanted = prepared(X)
    other = copy.deepcopy(prepared)
    assert torch.equal(other(X), wanted)
    assert set(trained_layers(other)) == {"conv", "hidden", "head"}
    assert b"TrainedConv2d" in pickle.dumps(prepared)


@pytest.mark.parametrize("how", ["in place", "data", "load", "norm", "scale"])
def test_evaluation_sees_every_change(how: str) -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X]).eval()
    before = prepared(X)
    with torch.no_grad():
        if how == "in place":
            prepared.head.weight.mul_(2)
        elif how == "data":
            prepared.head.weight.data.copy_(prepared.head.weight.data.flip(0))
        elif how == "load":
            prepared.load_state_dict({k: v * 2 if v.dim() > 1 else v for k, v in prepared.state_dict().items()})
        elif how == "norm":
            prepared.conv.folded_norm.norm.running_mean.data.add_(1)
        else:
            prepared.head.weight_quantizer.scale.data.mul_(1.5)
    after = prepared(X)
    assert not torch.equal(before, after)
    assert torch.equal(after, fewbit.convert(prepared)(X))


def test_evaluation_mode_gives_gradients_of_the_frozen_model() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    prepared.eval()(X).square().sum().backward()
    found = {name: p.grad.clone() for name, p in prepared.named_parameters()}
    prepared.zero_grad()
    fewbit.train.freeze(prepared, norms=True)
    prepared.train()(X).square().sum().backward()
    for name, parameter in prepared.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bias_that_a_forward_of_ones_own_adds_is_folded_too(frozen: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(HalvedLinear(6, 4), nn.BatchNorm1d(4))
    nn.init.normal_(model[0].bias, 3.0)
    x = torch.randn(64, 6)
    for _ in range(40):
        model(x)
    prepared = fewbit.prepare_qat(model.eval(), "W8A8", [x], freeze_norms_after=0 if frozen else None)
    assert prepared[0].folded_norm is not None
    wanted = model(x) if frozen else model.train()(x)
    assert torch.allclose(prepared(x), wanted, atol=0.05)
    assert torch.equal(prepared.eval()(x), fewbit.convert(prepared)(x))
    assert prepared[0].bias.abs().max() > 2


def test_the_float_layer_has_the_norm_folded_and_shares_nothing() -> None:
    model = net()
    prepared = fewbit.prepare_qat(model, "W4A4", [X]).eval()
    layer = prepared.conv
    assert isinstance(layer, TrainedLayer)
    plain = float_layer(layer, hooks=False)
    assert type(plain) is nn.Conv2d
    assert torch.allclose(plain(X), model.norm(model.conv(X)), atol=1e-5)
    plain.weight.data.zero_()
    assert layer.weight.any()
    assert set(plain._modules) == set()


def test_a_deployed_layer_is_a_quantized_layer() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    fit(prepared, 1)
    made = deployed_layer(prepared.head)
    assert type(made).__name__ == "QuantLinear"
    converted = fewbit.convert(prepared)
    assert torch.equal(made.weight.weight_qtensor().codes, converted.head.weight.weight_qtensor().codes)


def test_half_the_memory_trains_too() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A16-g4").to(torch.bfloat16)
    prepared(X.bfloat16()).sum().backward()
    assert prepared.hidden.weight.grad.dtype == torch.bfloat16
    assert fewbit.convert(prepared)(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("recipe", ["W8A8", "W4A4", "W8A8-dynamic", "W4A16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_evaluated_as_converted(recipe: str, dtype: torch.dtype) -> None:
    model = net()
    torch.nn.init.normal_(model.norm.weight)
    torch.nn.init.normal_(model.norm.running_mean)
    prepared = fewbit.prepare_qat(model, recipe, [X]).to(dtype).eval()
    with torch.no_grad():
        assert torch.equal(prepared(X.to(dtype)), fewbit.convert(prepared)(X.to(dtype)))
