"""Layers with another weight than their own: the result of the layer that has that weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.nn import kinds
from fewbit.train.forwards import WithWeight, forward_with

from .samples import HalvedLinear, OneSidedConv2d, ScaledEmbedding

LAYERS = [
    (nn.Linear(6, 4), torch.randn(3, 6)),
    (nn.Linear(6, 4, bias=False), torch.randn(2, 5, 6)),
    (nn.Conv1d(4, 6, 3, padding="same", dilation=2), torch.randn(2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, padding_mode="circular"), torch.randn(2, 4, 9, 9)),
    (nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), torch.randn(2, 4, 5, 5)),
    (nn.Embedding(7, 4, padding_idx=1), torch.tensor([[1, 2], [6, 0]])),
]


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=lambda v: type(v).__name__)
def test_the_weight_and_the_bias_are_replaced(layer: nn.Module, x: torch.Tensor) -> None:
    wanted = copy.deepcopy(layer)
    bias = layer._parameters.get("bias")
    with torch.no_grad():
        wanted.weight.mul_(2)
        if bias is not None:
            wanted.bias.add_(1)
    other_bias = None if bias is None else bias + 1
    assert torch.allclose(forward_with(layer, (x,), {}, layer.weight * 2, other_bias), wanted(x), atol=1e-5)
    assert torch.allclose(forward_with(layer, (), {"input": x}, layer.weight * 2, other_bias), wanted(x), atol=1e-5)


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=lambda v: type(v).__name__)
def test_a_weight_as_a_matrix_and_back(layer: nn.Module, x: torch.Tensor) -> None:
    matrix = kinds.as_matrix(layer, layer.weight)
    assert torch.equal(matrix, kinds.weight_matrix(layer))
    assert torch.equal(kinds.from_matrix(layer, matrix), layer.weight)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (OneSidedConv2d(3, 4, 2), torch.randn(2, 3, 5, 5)),
        (ScaledEmbedding(5, 3), torch.tensor([1, 4])),
        (HalvedLinear(6, 4), torch.randn(2, 6)),
    ],
)
def test_a_forward_of_ones_own_meets_the_other_weight(layer: nn.Module, x: torch.Tensor) -> None:
    wanted = copy.deepcopy(layer)
    with torch.no_grad():
        wanted.weight.mul_(2)
    quantize = None if isinstance(layer, nn.Embedding) else (lambda v: v * 3)
    with WithWeight(layer.weight, layer.weight * 2, quantize, kinds.kernel_shape(layer)):
        found = type(layer).forward(layer, x)
    assert torch.allclose(found, wanted(x if quantize is None else x * 3), atol=1e-5)


def test_a_size_at_the_call_is_refused_as_after_conversion() -> None:
    layer = nn.ConvTranspose2d(2, 2, 3, 2)
    with pytest.raises(FewbitError, match="set output_padding on the float layer"):
        forward_with(layer, (torch.randn(1, 2, 4, 4), [10, 10]), {}, layer.weight, None)
