"""Layers that multiply by their weight's transpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import quantized_layers
from fewbit.nn.transposed import Transposed


class Multiplied(nn.Linear):
    """As Falcon's layers do."""

    def forward(self, input: Tensor) -> Tensor:
        hidden = input @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


@pytest.mark.parametrize("recipe", ["W4A16-g32", "W8A8-dynamic"])
@pytest.mark.parametrize("bias", [True, False])
def test_they_compute_what_a_plain_layer_computes(recipe: str, bias: bool) -> None:
    torch.manual_seed(0)
    own, plain, x = Multiplied(64, 16, bias), nn.Linear(64, 16, bias), torch.randn(3, 5, 64)
    plain.load_state_dict(own.state_dict())
    found, wanted = (fewbit.quantize(nn.Sequential(m), recipe, [x], bias_correction=False) for m in (own, plain))
    assert list(quantized_layers(found)) == ["0"]
    assert torch.allclose(found(x), wanted(x), atol=1e-6)


def test_another_use_is_refused() -> None:
    layer = quantized_layers(fewbit.quantize(nn.Sequential(nn.Linear(64, 16)), "W4A16-g32"))["0"]
    assert isinstance(layer.weight.T, Transposed)
    with pytest.raises(FewbitError, match="transpose of a quantized weight was used in add"):
        torch.add(torch.ones(64, 16), layer.weight.T)
