"""Products in bfloat16 where the processor has them; float32 in and out."""

from __future__ import annotations

import torch
from torch import nn

from fewbit.nn.fast_float import fast_float


def test_products_are_near_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(8, 64)
    with torch.no_grad():
        exact = layer(x)
        with fast_float(x.device):
            fast = layer(x).float()
        assert torch.equal(layer(x), exact)
    assert (fast - exact).abs().max() < 0.03
    assert layer.weight.dtype == torch.float32
