"""Exact bytes: counted here against the tensors themselves and against what a file holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewbit.evaluate.size import file_bytes, layer_sizes, model_bytes, parameter_count
from fewbit.formats import save
from fewbit.nn import quantized_layers, quantized_weight
from fewbit.pipeline import quantize
from fewbit.recipe import Recipe, Rule


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(ids)))


def test_float_layers_count_parameters_and_persistent_buffers(cnn: nn.Module) -> None:
    expected = sum(tensor.numel() * tensor.element_size() for tensor in cnn.state_dict().values())
    assert model_bytes(cnn) == expected
    assert sum(size.nbytes for size in layer_sizes(cnn)) == expected
    by_name = {size.name: size for size in layer_sizes(cnn)}
    assert list(by_name) == ["0", "1", "3", "6"]
    norm = by_name["1"]
    assert (norm.parameters, norm.values, norm.fixed_bytes, norm.nbytes) == (16, 32, 8, 136)
    assert (by_name["0"].kind, by_name["0"].shape, by_name["0"].weights) == (
        "Conv2d",
        (8, 3, 3, 3),
        "float32",
    )


def test_other_widths(cnn: nn.Module) -> None:
    sizes = layer_sizes(cnn)
    assert sum(size.bytes_at(32) for size in sizes) == model_bytes(cnn)
    assert sum(size.bytes_at(16) for size in sizes) == model_bytes(cnn.half())
    odd = layer_sizes(nn.Linear(3, 1, bias=False))[0]
    assert odd.bytes_at(4) == 2  # three values of 4 bits


def test_buffers_that_no_file_holds_are_not_counted() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("cache", torch.zeros(1000), persistent=False)
    module.register_buffer("kept", torch.zeros(3, dtype=torch.int16))
    assert model_bytes(module) == 6 * 4 + 6
    assert layer_sizes(module)[0].bytes_at(8) == 6 + 6


def test_tied_tensors_count_once() -> None:
    model = Tied()
    assert model_bytes(model) == (20 * 8 + 8 * 8 + 8) * 4
    assert parameter_count(model) == 20 * 8 + 8 * 8 + 8
    sizes = {size.name: size.nbytes for size in layer_sizes(model)}
    assert sizes == {"embed": 640, "inner": 288, "head": 0}


def test_two_views_of_one_memory_that_differ_are_two_tensors() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    both = torch.zeros(8, 4)
    for layer, half in zip(model, both.split(4)):
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(half)
    assert model_bytes(model) == 8 * 4 * 4


def test_models_without_memory_are_counted_too() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert model_bytes(model) == 2 * 20 * 4


def test_half_precision() -> None:
    assert model_bytes(nn.Linear(3, 2).bfloat16()) == 8 * 2
    assert layer_sizes(nn.Linear(3, 2).half())[0].weights == "float16"


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic", "W8A16", "W4A16-g32", "W3A16-g16-asym", "W2A16-g32"])
def test_a_quantized_layer_is_its_qtensor_its_bias_and_its_scale(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 5, bias=False))
    quantized = quantize(model, scheme, [torch.randn(4, 40)], calibrator="minmax", bias_correction=False)
    for name, layer in quantized_layers(quantized).items():
        weight = quantized_weight(layer)
        expected = weight.weight_qtensor().nbytes
        expected += 0 if layer.bias is None else 4 * layer.bias.numel()  # type: ignore[operator,union-attr]
        expected += 8 if scheme == "W8A8" else 0  # a float32 scale and an int32 zero point
        assert model_bytes(layer) == expected, name


def test_groups_count_their_padding() -> None:
    quantized = quantize(nn.Sequential(nn.Linear(40, 3, bias=False)), "W4A16-g32")
    assert model_bytes(quantized) == 3 * 64 // 2 + 3 * 2 * 2  # 40 columns fill up to 64; two scales a row
    (size,) = layer_sizes(quantized)
    assert (size.parameters, size.shape, size.weights, size.input) == (120, (3, 40), "int4/g32/sym/f16", "float")


def test_a_quantized_model_is_what_its_file_holds(cnn: nn.Module, pictures: list[torch.Tensor], tmp_path: Path) -> None:
    quantized = quantize(cnn, "W8A8", pictures, calibrator="minmax")
    save(quantized, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert model_bytes(quantized) == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert model_bytes(quantized) == sum(size.nbytes for size in layer_sizes(quantized))
    assert file_bytes(tmp_path / "out") == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert file_bytes(tmp_path / "out") > model_bytes(quantized)


def test_tied_quantized_layers_count_once() -> None:
    model = Tied()
    recipe = Recipe("W8A16", rules=(Rule("inner", skip=True),))
    quantized = quantize(model, recipe)
    packed = quantized_weight(quantized.head).weight_qtensor().nbytes
    assert model_bytes(quantized) == packed + 288
    sizes = {size.name: size for size in layer_sizes(quantized)}
    assert sizes["embed"].nbytes == packed
    assert (sizes["head"].nbytes, sizes["head"].parameters) == (0, 0)
    assert parameter_count(quantized) == parameter_count(model)


def test_file_bytes_of_a_file_and_of_a_folder_with_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep" / "b").write_bytes(b"4567")
    assert file_bytes(tmp_path / "a") == 3
    assert file_bytes(tmp_path) == 7


def test_parameters_of_a_quantized_model_are_those_of_the_float_one() -> None:
    model = nn.Sequential(nn.Linear(40, 12), nn.Conv1d(2, 4, 3))
    quantized = quantize(model, "W4A16-g32")
    assert parameter_count(quantized) == parameter_count(model) == sum(math.prod(p.shape) for p in model.parameters())
