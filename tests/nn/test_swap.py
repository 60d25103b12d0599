"""Putting quantized layers into a model, and finding them there."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import (
    QuantConv,
    QuantizedWeight,
    QuantLinear,
    layer_config,
    quantized_layers,
    quantized_weight,
    restore_layer,
    swap_layer,
)
from fewbit.nn.swap import IN_PLACE, replace_module
from nn.samples import SameConv2d, ScaledEmbedding, quantized_weight_of


class Shared(nn.Module):
    """One layer under two names, at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(self.first(x))
        return result


class Tied(nn.Module):
    """An embedding and a head that share one parameter."""

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 12, bias=False) for _ in range(copies)])
        for head in self.heads:
            head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        x = self.embedding(index)
        return torch.stack([head(x) for head in self.heads])


def test_a_layer_is_replaced_by_name() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Linear(4, 2))
    result = swap_layer(model, "0.0", quantized_weight_of(model[0][0]), None)
    assert result is model
    assert isinstance(model[0][0], QuantConv)
    assert isinstance(model[1], nn.Linear)


def test_a_model_that_is_one_layer_becomes_the_new_one() -> None:
    module = nn.Linear(4, 2)
    result = swap_layer(module, "", quantized_weight_of(module), None)
    assert isinstance(result, QuantLinear)


def test_a_layer_under_two_names_is_replaced_in_both_places() -> None:
    model = Shared()
    swap_layer(model, "first", quantized_weight_of(model.first), None)
    assert isinstance(model.first, QuantLinear)
    assert model.block[1] is model.first
    assert list(quantized_layers(model)) == ["first"]


def test_quantize_keeps_a_shared_layer_shared() -> None:
    model, x = Shared().eval(), torch.randn(3, 4)
    quantized = fewbit.quantize(model, "W8A8", [x])
    assert quantized.get_submodule("block.1") is quantized.get_submodule("first")
    with torch.no_grad():
        assert torch.allclose(quantized(x), model(x), atol=0.05)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_a_replaced_module_is_kept(training: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).train(training)
    new = nn.Identity()
    replace_module(model, model[0], new)
    assert model[0] is new
    assert new.training is training


def test_own_forwards_stay_and_change_their_weight_alone() -> None:
    model = nn.Sequential(SameConv2d(3, 4, 3))
    layer = model[0]
    swap_layer(model, "0", quantized_weight_of(layer), torch.ones(4))
    assert model[0] is layer
    assert isinstance(layer.weight, QuantizedWeight)
    assert torch.equal(layer.bias, torch.ones(4))
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"bias", "weight.packed.codes", "weight.packed.scale"}
    bare = SameConv2d(3, 4, 3, bias=False)
    swap_layer(bare, "", quantized_weight_of(bare), None)
    assert bare.bias is None
    assert bare(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)


def test_quantized_layers_finds_every_kind() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "same": SameConv2d(1, 1, 1), "table": ScaledEmbedding(2, 2)})
    assert quantized_layers(model) == {}
    for name in list(model):
        swap_layer(model, name, quantized_weight_of(model[name]), None)
    found = quantized_layers(model)
    assert list(found) == ["linear", "same", "table"]
    assert all(isinstance(quantized_weight(layer), QuantizedWeight) for layer in found.values())


# --- config and back ----------------------------------------------------------------------------


def every_kind() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, padding_mode="reflect", padding=1), SameConv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 2, 2, 2), nn.Flatten(), nn.Linear(200, 5), nn.Linear(5, 3, bias=False),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic", "W4A16-g32-asym"])
@torch.no_grad()
def test_a_model_is_restored_from_configs_and_state(scheme: str) -> None:
    x = torch.randn(2, 3, 9, 9)
    quantized = fewbit.quantize(every_kind(), scheme, [x])
    configs = {name: layer_config(layer) for name, layer in quantized_layers(quantized).items()}
    assert configs["1"]["class"] == IN_PLACE
    restored = every_kind()
    for name, config in json.loads(json.dumps(configs)).items():
        assert restore_layer(restored, name, config) is restored
    restored.load_state_dict(quantized.state_dict())
    assert torch.equal(restored(x), quantized(x))
    assert {name: layer_config(layer) for name, layer in quantized_layers(restored).items()} == configs
    assert isinstance(restored[1], SameConv2d)


def test_one_layer_is_restored_as_the_model_itself() -> None:
    quantized = fewbit.quantize(nn.Linear(4, 2), "W8A16")
    restored = restore_layer(nn.Linear(4, 2), "", layer_config(quantized))
    restored.load_state_dict(quantized.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(restored(x), quantized(x))


def test_what_does_not_fit_is_refused() -> None:
    config = layer_config(fewbit.quantize(nn.Linear(4, 2), "W8A16"))
    with pytest.raises(FewbitError, match=r"the model has no layer '3\.weird'"):
        restore_layer(nn.Sequential(nn.Linear(4, 2)), "3.weird", config)
    with pytest.raises(FewbitError, match="layer '0' has an unknown class 'QuantPoem'"):
        restore_layer(nn.Sequential(nn.Linear(4, 2)), "0", {**config, "class": "QuantPoem"})


# --- tied weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8-dynamic", "W8A8", "W4A16-g32"])
def test_tied_weights_stay_tied(scheme: str) -> None:
    model, index = Tied(2).eval(), torch.randint(0, 12, (3, 4))
    quantized = fewbit.quantize(model, scheme, [index])
    packed = {id(quantized_weight(layer).packed) for layer in quantized_layers(quantized).values()}
    assert len(quantized_layers(quantized)) == 3
    assert len(packed) == 1
    with torch.no_grad():
        wanted, result = model(index), quantized(index)
    assert float((result - wanted).norm() / wanted.norm()) < (0.2 if scheme.startswith("W4") else 0.02)
    clone = copy.deepcopy(quantized)
    assert len({id(quantized_weight(layer).packed) for layer in quantized_layers(clone).values()}) == 1
    assert len({id(q.codes) for q in clone.modules() if hasattr(q, "matrix_shape")}) == 1


def test_the_user_s_model_is_left_as_it_was() -> None:
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fewbit.quantize(model, "W8A16")
    assert isinstance(model.embedding, nn.Embedding)
    assert model.heads[0].weight is model.embedding.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
