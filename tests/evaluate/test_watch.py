"""Layers with a forward of their own, before and after they went through a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.evaluate.error import sqnr
from fewbit.evaluate.layers import LayerCost, LayerPass
from fewbit.evaluate.watch import Watch
from fewbit.formats import load, save
from fewbit.nn import quantized_layers, quantized_weight
from fewbit.pipeline import quantize


class Padded(nn.Conv2d):
    """Pads by itself, as TensorFlow's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    """Goes on with what its product gives."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * F.linear(x, self.weight, self.bias)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = Padded(3, 8, 2)
        self.scaled = Scaled(8 * 64, 10)
        self.plain = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(torch.relu(self.scaled(torch.relu(self.conv(x)).flatten(1))))


def measure(model: nn.Module, quantized: nn.Module, batches: list[Tensor]) -> dict[str, LayerCost]:
    layers = LayerPass(model, quantized)
    with torch.no_grad():
        for batch in batches:
            with layers.hooked():
                model(batch)
                quantized(batch)
            layers.end_batch()
    return {cost.name: cost for cost in layers.costs()}


@pytest.fixture
def models(pictures: list[Tensor]) -> tuple[nn.Module, nn.Module]:
    model = Net().eval()
    return model, quantize(model, "W8A8", pictures, calibrator="minmax")


def test_layers_with_their_own_forward(models: tuple[nn.Module, nn.Module], pictures: list[Tensor]) -> None:
    model, quantized = models
    costs = measure(model, quantized, pictures)
    conv, after = model.get_submodule("conv"), quantized.get_submodule("conv")
    x = torch.cat(pictures)
    with torch.no_grad():
        assert costs["conv"].alone_sqnr == pytest.approx(sqnr(conv(x), after(x)), abs=0.05)
    for cost in costs.values():
        assert cost.output_sqnr is not None
        assert cost.output_sqnr > 30
    assert costs["conv"].kind == "Padded"


def test_the_same_figures_after_a_file(
    models: tuple[nn.Module, nn.Module], pictures: list[Tensor], tmp_path: Path
) -> None:
    model, quantized = models
    before = measure(model, quantized, pictures)
    save(quantized, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert isinstance(loaded, torch.fx.GraphModule)
    assert type(loaded.get_submodule("conv")) is nn.Module, "a mere holder"
    after = measure(model, loaded, pictures)
    assert list(after) == list(before)
    for name in ("conv", "plain"):
        assert after[name].output_sqnr == pytest.approx(before[name].output_sqnr)
    for name, cost in after.items():
        assert cost.alone_sqnr == pytest.approx(before[name].alone_sqnr)
        assert cost.weight_sqnr == before[name].weight_sqnr
        assert cost.bytes_after == before[name].bytes_after
        assert cost.input is not None
    # its graph multiplies outside of the layer, so what its weight answers is not its output
    assert after["scaled"].output_sqnr is None


def test_models_are_left_as_they_were(
    models: tuple[nn.Module, nn.Module], pictures: list[Tensor], tmp_path: Path
) -> None:
    model, quantized = models
    save(quantized, tmp_path / "out")
    loaded = load(tmp_path / "out")
    with torch.no_grad():
        expected = model(pictures[0]), loaded(pictures[0])
        measure(model, loaded, pictures)
        assert torch.equal(model(pictures[0]), expected[0])
        assert torch.equal(loaded(pictures[0]), expected[1])
    assert isinstance(model.get_submodule("conv").weight, nn.Parameter)
    for layer in quantized_layers(loaded).values():
        assert not {"linear", "conv", "embedding"} & set(vars(quantized_weight(layer)))
    assert not any(module._forward_hooks for each in (model, loaded) for module in each.modules())


def test_outputs_that_are_no_tensor_are_passed_over() -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return F.linear(x, self.weight, self.bias), None

    class Wrap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x)[0]

    model = Wrap().eval()
    watch = Watch("two", model.two, quantize(model, "W8A16").get_submodule("two"))
    with torch.no_grad(), watch.hooked():
        model(torch.ones(1, 4))
    assert watch.alone.count == watch.output.count == 0
