"""What a recipe would make of a model, foretold from shapes, against what it does make."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.evaluate.inspection import inspect_model
from fewbit.evaluate.size import layer_sizes, model_bytes
from fewbit.pipeline import quantize
from fewbit.recipe import Recipe, Rule


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 40)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.head = nn.Linear(40, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_without_a_recipe_it_is_the_sizes(cnn: nn.Module) -> None:
    inspection = inspect_model(cnn)
    assert [layer.size for layer in inspection.layers] == layer_sizes(cnn)
    assert inspection.parameters == sum(parameter.numel() for parameter in cnn.parameters())
    assert inspection.nbytes == inspection.bytes_at(32) == model_bytes(cnn)
    assert inspection.planned_bytes is None


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic", "W8A16", "W4A16-g32", "W3A16-g5-asym", "W8A8-tensor"])
def test_foretold_bytes_are_the_bytes(scheme: str, cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, scheme, pictures, calibrator="minmax", bias_correction=False)
    inspection = inspect_model(cnn, Recipe(scheme))
    assert inspection.planned_bytes == model_bytes(quantized)
    actual = {size.name: size for size in layer_sizes(quantized)}
    for layer in inspection.layers:
        assert layer.planned is not None
        if layer.size.name in actual:
            assert layer.planned.nbytes == actual[layer.size.name].nbytes
            assert layer.planned.weights == actual[layer.size.name].weights
            assert layer.planned.input == actual[layer.size.name].input


def test_batch_norm_goes_into_the_layer_before(cnn: nn.Module) -> None:
    before = copy.deepcopy(cnn.state_dict())
    layers = {layer.size.name: layer.planned for layer in inspect_model(cnn, Recipe("W8A16")).layers}
    norm, conv = layers["1"], layers["0"]
    assert norm is not None
    assert conv is not None
    assert norm.nbytes == 0
    assert "folded" in norm.reason
    assert conv.nbytes == 216 + 8 * 4 + 8 * 4  # codes, scales, and the bias it got
    assert all(torch.equal(cnn.state_dict()[name], tensor) for name, tensor in before.items())


def test_skipped_and_tied_layers() -> None:
    model = Tied()
    recipe = Recipe("W4A16-g32", rules=(Rule("embed", weights="int4/g32/sym"), Rule("up", skip=True)))
    inspection = inspect_model(model, recipe)
    assert inspection.planned_bytes == model_bytes(quantize(model, recipe))
    layers = {layer.size.name: layer.planned for layer in inspection.layers}
    assert layers["up"] is not None
    assert (layers["up"].weights, layers["up"].reason) == ("float", "skipped by rule 'up'")
    assert layers["head"] is not None
    assert layers["head"].nbytes == 0


def test_transposed_convolutions_and_one_dimensional_ones() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv1d(6, 4, 5))
    recipe = Recipe("W4A16-g32-asym")
    assert inspect_model(model, recipe).planned_bytes == model_bytes(quantize(model, recipe))


def test_a_quantized_model_shows_its_codes(cnn: nn.Module, pictures: list[Tensor]) -> None:
    inspection = inspect_model(quantize(cnn, "W8A8", pictures, calibrator="minmax"))
    assert [layer.size.weights for layer in inspection.layers] == ["int8/channel/sym"] * 3
    assert [layer.size.input for layer in inspection.layers] == ["uint8/tensor/asym"] * 3


def test_a_recipe_that_does_not_fit_is_told(cnn: nn.Module) -> None:
    with pytest.raises(FewbitError, match="lm_head"):
        inspect_model(cnn, Recipe("W8A8", rules=(Rule("lm_head", skip=True),)))
