"""What stands in a layer's ``weight``: it serves the calls a weight is used in, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import QuantizedWeight
from nn.samples import (
    MODES,
    HalvedLinear,
    SameConv2d,
    ScaledEmbedding,
    difference,
    input_quantizer,
    inputs,
    on_grid,
    quantized_weight_of,
    swapped,
)


def weight_of(module: nn.Module, mode: str, kind: str = "Linear") -> QuantizedWeight:
    return quantized_weight_of(on_grid(module), quantizer=input_quantizer(mode, kind))


# --- in the place of a tensor -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_linear_written_in_every_way(mode: str) -> None:
    module, x = nn.Linear(12, 5), inputs(3, 12)
    weight = weight_of(module, mode)
    wanted, bias = F.linear(x, module.weight), module.bias
    for result in (
        F.linear(x, weight),
        F.linear(input=x, weight=weight),
        F.linear(x, weight, bias) - bias,
        torch._C._nn.linear(x, weight),
    ):
        assert torch.allclose(result, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_convolutions_written_in_every_way(mode: str, axes: int) -> None:
    module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](4, 6, 3, groups=2)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    other = (torch.conv1d, torch.conv2d, torch.conv3d)[axes - 1]
    weight = weight_of(module, mode, "Conv")
    real, bias, x = module.weight, module.bias, inputs(2, 4, *(7, 6, 5)[:axes])
    for f in (function, other):
        assert torch.equal(f(x, weight, bias, 1, 0, 1, 2), f(x, real, bias, 1, 0, 1, 2))
        assert torch.equal(
            f(x, weight, None, stride=2, padding=1, dilation=1, groups=2),
            f(x, real, None, stride=2, padding=1, dilation=1, groups=2),
        )
        assert torch.equal(
            f(input=x, weight=weight, padding="same", groups=2), f(input=x, weight=real, padding="same", groups=2)
        )
        assert torch.equal(f(x[0], weight, bias, 1, 0, 1, 2), f(x[0], real, bias, 1, 0, 1, 2))


def test_embedding_written_in_every_way() -> None:
    module, index = nn.Embedding(5, 8), torch.tensor([[1, 4]])
    weight = quantized_weight_of(module)
    table = weight.weight_qtensor().dequantize()
    assert torch.equal(F.embedding(index, weight), table[index])
    assert torch.equal(F.embedding(input=index, weight=weight, padding_idx=4), table[index])


USES: dict[str, Callable[[Any, Tensor], object]] = {
    "matmul": lambda weight, x: torch.matmul(x, weight),
    "add": lambda weight, x: x + weight,
    "mean": lambda weight, x: torch.mean(weight),
    "transpose": lambda weight, x: torch.t(weight),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_other_uses_are_refused_in_a_sentence(use: Callable[[Any, Tensor], object]) -> None:
    weight = quantized_weight_of(nn.Linear(4, 4))
    with pytest.raises(FewbitError, match="skip that layer with a rule"):
        use(weight, torch.ones(2, 4))


# --- layers with a forward of their own ---------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_own_forwards_keep_working_on_the_quantized_weight(mode: str) -> None:
    images = inputs(2, 4, 9, 8)
    for module, x in (
        (SameConv2d(4, 6, 3, 2, groups=2), images),
        (SameConv2d(4, 6, (2, 5), 1, dilation=2, bias=False), images),
        (HalvedLinear(12, 5), inputs(3, 12) * 2),
    ):
        on_grid(module)
        wanted = copy.deepcopy(module).double()(x.double()).float()
        layer = swapped(module, mode)
        assert layer is module
        assert isinstance(layer.weight, QuantizedWeight)
        assert torch.equal(layer(x), wanted)


def test_a_scaled_embedding_keeps_its_scale() -> None:
    module, index = ScaledEmbedding(5, 8), torch.tensor([1, 4])
    layer = swapped(module, "weight-only")
    assert torch.equal(layer(index), layer.weight.weight_qtensor().dequantize()[index] * 4)


@torch.no_grad()
def test_an_own_forward_may_look_at_its_weight() -> None:
    class Looking(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            pad = [side // 2 for side in self.weight.shape[2:]]
            x = input.to(device=self.weight.device, dtype=self.weight.dtype)
            return F.conv2d(x, self.weight, self.bias, padding=pad)

    module, x = on_grid(Looking(4, 6, (3, 5))), inputs(2, 4, 7, 8)
    wanted = module(x)
    shape = module.weight.shape
    layer = swapped(module, "static")
    assert layer.weight.shape == shape
    assert layer.weight.dtype == torch.float32
    assert difference(layer(x), wanted) < 1e-6


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8", "W8A8-dynamic"])
def test_a_layer_that_does_arithmetic_on_its_weight_is_refused_by_name(scheme: str) -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Standardized(3, 4, 3))
    with pytest.raises(FewbitError):
        fewbit.quantize(model, scheme, [torch.randn(2, 3, 5, 5)])


class OwnForwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.linear = ScaledEmbedding(7, 6), SameConv2d(6, 4, 3, 2), HalvedLinear(4, 5)

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.linear(self.conv(self.table(index).permute(0, 3, 1, 2)).mean((2, 3)))
        return result


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic", "W4A16-g32"])
@torch.no_grad()
def test_own_forwards_are_compiled_in_one_graph_and_exported(scheme: str) -> None:
    index = torch.randint(0, 7, (3, 5, 6))
    model = fewbit.quantize(OwnForwards(), scheme, [index])
    program = torch.export.export(model, (index,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randint(0, 7, (6, 5, 6))
    assert difference(program.module()(more), model(more)) < 5e-3
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(index), model(index)) < 5e-3


# --- values, config -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_picked_rows_are_the_dequantized_ones(dtype: torch.dtype) -> None:
    weight = quantized_weight_of(nn.Embedding(6, 8).to(dtype), "int4/g4/asym")
    table = weight.weight_qtensor().dequantize().to(dtype)
    assert torch.equal(weight[2], table[2])
    assert torch.equal(weight[1:3], table[1:3])
    assert torch.equal(weight[torch.tensor([5, 0])], table[torch.tensor([5, 0])])


@pytest.mark.parametrize("mode", MODES)
def test_config_makes_an_empty_weight_of_the_same_kind(mode: str) -> None:
    for module, kind in ((nn.Linear(7, 3), "Linear"), (nn.Conv2d(4, 6, (3, 2), groups=2).half(), "Conv2d")):
        weight = quantized_weight_of(module, "int3/g5/asym", input_quantizer(mode, kind))
        config = json.loads(json.dumps(weight.config()))
        again = QuantizedWeight.from_config(config)
        assert again.config() == config
        again.load_state_dict(weight.state_dict())
        first, second = weight.weight_qtensor(), again.weight_qtensor()
        assert torch.equal(first.dequantize(), second.dequantize())
        assert (again.shape, again.dtype) == (weight.shape, weight.dtype)


def test_moving_to_another_dtype_leaves_scales_alone() -> None:
    module, x = on_grid(nn.Linear(12, 5)), inputs(3, 12)
    layer = swapped(module, "static")
    wanted = layer(x)
    layer.half()
    weight = layer.weight
    assert weight.packed.scale.dtype == torch.float32
    assert weight.input_quantizer.scale.dtype == torch.float32
    assert torch.equal(layer(x.half()), wanted.half())


@torch.no_grad()
def test_a_deep_copy_computes_by_itself() -> None:
    module, x = on_grid(nn.Linear(12, 5)), inputs(3, 12)
    layer = swapped(module, "dynamic")
    before = layer(x)
    second = copy.deepcopy(layer)
    second.weight.packed.scale.mul_(0)
    assert torch.equal(second(x), second.bias.expand(3, 5))
    assert torch.equal(layer(x), before)


@torch.no_grad()
def test_a_layer_whose_state_is_loaded_forgets_what_it_had_prepared() -> None:
    x = inputs(3, 12)
    for mode in MODES:
        first, second = (swapped(on_grid(nn.Linear(12, 5)), mode) for _ in range(2))
        first(x)
        first.load_state_dict(second.state_dict())
        assert torch.equal(first(x), second(x))
        third = swapped(on_grid(nn.Linear(12, 5)), mode)
        first.load_state_dict(third.state_dict(), assign=True)
        assert torch.equal(first(x), third(x))
