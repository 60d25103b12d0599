"""Per-layer figures against the same ones computed from outputs that were kept."""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.evaluate.error import sqnr
from fewbit.evaluate.layers import LayerCost, LayerPass
from fewbit.nn import fold_batch_norm, kinds, quantized_layers, quantized_weight
from fewbit.pipeline import quantize
from fewbit.recipe import Recipe, Rule


def measure(reference: nn.Module, quantized: nn.Module, batches: list[Tensor]) -> dict[str, LayerCost]:
    layers = LayerPass(reference, quantized)
    with torch.no_grad():
        for batch in batches:
            with layers.hooked():
                reference(batch)
                quantized(batch)
            layers.end_batch()
    return {cost.name: cost for cost in layers.costs()}


def kept_outputs(model: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, Tensor]:
    """Every output of the named layers over all batches, and every input as ``name.in``."""
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            kept.setdefault(name, []).append(output.clone())
            kept.setdefault(f"{name}.in", []).append(args[0].clone())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def test_every_figure_of_a_folded_network(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    reference = fold_batch_norm(copy.deepcopy(cnn)).model
    costs = measure(reference, quantized, pictures)
    names = list(quantized_layers(quantized))
    assert list(costs) == names == ["0", "3", "6"]
    before, after = kept_outputs(reference, names, pictures), kept_outputs(quantized, names, pictures)
    for name, cost in costs.items():
        layer, float_layer = quantized.get_submodule(name), reference.get_submodule(name)
        weight = quantized_weight(layer).weight_qtensor()
        assert cost.output_sqnr == pytest.approx(sqnr(before[name], after[name]), abs=1e-3)
        with torch.no_grad():
            alone = layer(before[f"{name}.in"])
        assert cost.alone_sqnr == pytest.approx(sqnr(before[name], alone), abs=0.05)
        assert cost.weight_sqnr == pytest.approx(sqnr(kinds.weight_matrix(float_layer), weight.dequantize()), abs=1e-3)
        assert (cost.weight_spec, cost.input_spec) == ("int8/channel/sym", "uint8/tensor/asym")
        assert cost.kind == type(float_layer).__name__
        assert cost.input is not None
        assert cost.input.power == pytest.approx(float(after[f"{name}.in"].square().mean()), rel=1e-4)
        assert cost.weight.clipping_mse == 0
        assert cost.weight.theory_ratio == pytest.approx(1, abs=0.3)
        assert 30 < cost.weight_sqnr < 60


def test_weights_are_measured_against_the_folded_ones(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    unfolded = measure(cnn, quantized, pictures)["0"]
    folded = measure(fold_batch_norm(copy.deepcopy(cnn)).model, quantized, pictures)["0"]
    assert unfolded.weight_sqnr < 20 < folded.weight_sqnr


def test_the_first_layer_alone_is_the_first_layer_in_the_model(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    costs = measure(fold_batch_norm(copy.deepcopy(cnn)).model, quantized, pictures)
    assert costs["0"].alone_sqnr == pytest.approx(costs["0"].output_sqnr)
    assert costs["6"].alone_sqnr > costs["6"].output_sqnr  # type: ignore[operator]


def test_a_bad_layer_stands_out_alone_and_spoils_what_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
    recipe = Recipe("W8A16", rules=(Rule("1", weights="int2/channel/sym"),))
    costs = measure(model, quantize(model, recipe), [torch.randn(64, 32)])
    assert costs["0"].output_sqnr > 30  # type: ignore[operator]
    assert costs["1"].alone_sqnr < 15  # type: ignore[operator]
    assert costs["2"].alone_sqnr > 30  # type: ignore[operator]
    assert costs["2"].output_sqnr < 15  # type: ignore[operator]
    assert costs["0"].input is None
    assert costs["0"].input_spec == "float"


def test_clipped_inputs_show_as_clipping() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    quantized = quantize(model, "W8A8", [torch.rand(50, 8)], calibrator="minmax")
    (cost,) = measure(model, quantized, [3 * torch.rand(500, 8)]).values()
    assert cost.input is not None
    assert 0.6 < cost.input.clipped_fraction < 0.7
    assert cost.input.clipping_mse > 1000 * cost.input.rounding_mse
    assert cost.input.theory_ratio == pytest.approx(1, abs=0.1)
    assert cost.input.clipping_share == pytest.approx(cost.input.clipping_mse / cost.input.power)


def test_bytes_and_parameters() -> None:
    model = nn.Sequential(nn.Linear(40, 3))
    (cost,) = measure(model, quantize(model, "W4A16-g32"), [torch.randn(2, 40)]).values()
    assert (cost.parameters, cost.bytes_before) == (123, 492)
    assert cost.bytes_after == 3 * 64 // 2 + 3 * 2 * 2 + 12


class Branches(nn.Module):
    """One layer used twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(torch.relu(self.twice(x)))


def test_a_layer_used_twice_counts_both_times_and_an_unused_one_none() -> None:
    torch.manual_seed(0)
    model = Branches().eval()
    quantized = quantize(model, "W4A16")
    costs = measure(model, quantized, [torch.randn(5, 6)])
    layers = LayerPass(model, quantized)
    with torch.no_grad(), layers.hooked():
        x = torch.randn(5, 6)
        model(x)
        quantized(x)
    (watch, _) = layers._watched
    assert watch.output.count == 2 * 5 * 6
    assert not watch.waiting
    assert costs["never"].output_sqnr is None
    assert costs["never"].alone_sqnr is None
    assert math.isfinite(costs["never"].weight_sqnr)


def test_arguments_by_name_reach_the_layer() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    model = Named().eval()
    costs = measure(model, quantize(model, "W8A16"), [torch.randn(3, 4)])
    assert costs["inner"].output_sqnr is not None


def test_hooks_and_held_outputs_are_gone_afterwards(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    layers = LayerPass(cnn, quantized)
    with torch.no_grad(), layers.hooked():
        cnn(pictures[0])
        held = [weakref.ref(output) for watch in layers._watched for output in watch.waiting]
        assert len(held) == 3
        quantized(pictures[0])
    assert not any(reference() is not None for reference in held), "what was compared is not kept"
    with torch.no_grad(), layers.hooked():
        cnn(pictures[1])
    assert all(watch.waiting for watch in layers._watched)
    layers.end_batch()
    assert not any(watch.waiting for watch in layers._watched)
    assert not any(module._forward_hooks for model in (cnn, quantized) for module in model.modules())


def test_hooks_are_gone_after_an_error(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    layers = LayerPass(cnn, quantized)
    with pytest.raises(RuntimeError), layers.hooked():
        cnn(torch.zeros(1, 99, 8, 8))
    assert not any(module._forward_hooks for model in (cnn, quantized) for module in model.modules())


def test_models_that_do_not_belong_together_are_told(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    with pytest.raises(FewbitError, match="'3' is not in the original"):
        LayerPass(nn.Sequential(nn.Conv2d(3, 8, 3)), quantized)
