"""From codes and input quantizers to layers in the model, biases corrected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewbit.algorithms import rtn
from fewbit.calibrate.input_mean import InputMean
from fewbit.nn import kinds, quantized_layers, quantized_weight
from fewbit.nn.build import build_layers
from fewbit.nn.quantizers import DynamicQuantizer
from fewbit.nn.statistics import LayerStatistics
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan, Scheme
from nn.samples import difference


def built(
    model: nn.Module, spec: str = "int4/channel/sym", means: dict[str, InputMean] | None = None, **given: Any
) -> Any:
    """Every layer of the model by its own range."""
    plans = [LayerPlan(name, kind, Scheme(QSpec.parse(spec)), "test") for name, _, kind in kinds.quantizable(model)]
    weights: dict[str, tuple[Tensor, QTensor]] = {}
    for plan in plans:
        matrix = kinds.weight_matrix(model.get_submodule(plan.name))
        weights[plan.name] = (matrix, rtn.quantize_weight(matrix, QSpec.parse(spec)))
    statistics = {p.name: LayerStatistics(p.name, None, True, (means or {}).get(p.name)) for p in plans}
    inputs = {p.name: None for p in plans}
    return build_layers(model, plans, given.get("weights", weights), given.get("inputs", inputs), statistics)


def test_every_planned_layer_is_swapped_and_others_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    relu = model[1]
    result, corrected = built(model)
    assert result is model
    assert list(quantized_layers(model)) == ["0", "3"]
    assert model[1] is relu
    assert corrected == 0


def test_a_model_of_one_layer_is_replaced() -> None:
    module = nn.Linear(4, 2)
    result, _ = built(module)
    assert result is not module
    assert list(quantized_layers(result)) == [""]


def test_layers_hold_the_given_codes_and_input_quantizers() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    matrix = kinds.weight_matrix(model[0])
    codes = rtn.quantize_weight(matrix, QSpec.parse("int3/channel/asym"))
    quantizer = DynamicQuantizer(QSpec.parse("int8/token/sym"))
    built(model, weights={"0": (matrix, codes)}, inputs={"0": quantizer})
    weight = quantized_weight(model[0])
    assert torch.equal(weight.weight_qtensor().codes, codes.codes)
    assert weight.input_quantizer is quantizer


def test_codes_that_are_given_twice_are_held_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    matrix = kinds.weight_matrix(model[0])
    codes = rtn.quantize_weight(matrix, QSpec.parse("int8/channel/sym"))
    built(model, weights={"0": (matrix, codes), "1": (matrix, codes)})
    assert quantized_weight(model[0]).packed is quantized_weight(model[1]).packed
    assert quantized_weight(model[0]) is not quantized_weight(model[1])


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_corrected_bias_restores_the_mean_output_of_a_linear_layer(bias: bool) -> None:
    model, x = nn.Sequential(nn.Linear(16, 8, bias=bias)), torch.randn(64, 16) + 2
    mean = InputMean(None)
    mean.update(x)
    wanted = model(x).mean(0)
    plain = built(nn.Sequential(nn.Linear(16, 8, bias=bias)))[0]
    assert (plain[0].bias is not None) is bias
    _, corrected = built(model, means={"0": mean})
    assert corrected == 1
    assert torch.allclose(model(x).mean(0), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(4, 6, 3, 2, (1, 0), 1, 2),
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        lambda: nn.Conv2d(4, 6, 4, padding="same"),
        lambda: nn.Conv2d(4, 6, 3, dilation=2),
    ],
    ids=["grouped", "depthwise", "same", "dilated"],
)
@torch.no_grad()
def test_the_corrected_bias_restores_the_mean_output_of_a_convolution(layer: Any) -> None:
    model, x = nn.Sequential(layer()), torch.randn(8, 4, 7, 8) + 2
    mean = InputMean(kinds.conv_geometry(model[0]))
    mean.update(x)
    wanted = model(x).mean((0, 2, 3))
    uncorrected = model(x)
    built(model, means={"0": mean})
    assert difference(model(x), uncorrected) > 1e-3, "four bits lose something"
    assert torch.allclose(model(x).mean((0, 2, 3)), wanted, atol=1e-4)


def test_a_layer_that_saw_no_data_keeps_its_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    bias = model[0].bias.detach().clone()
    assert built(model)[1] == 0
    assert torch.equal(model[0].bias, bias)
