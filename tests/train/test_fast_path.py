"""Fused transformer layers are evaluated through their quantized parts."""

from __future__ import annotations

import torch
from torch import nn

import fewbit
from fewbit.train.fast_path import block_fused_layers, unblock_fused_layers


def test_a_fused_layer_evaluates_what_it_deploys() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 2)).eval()
    x = torch.randn(2, 5, 16)
    prepared = fewbit.prepare_qat(model, "W2A8", [x]).eval()
    converted = fewbit.convert(prepared)
    with torch.no_grad():
        assert torch.equal(prepared(x), converted(x))
        assert not torch.allclose(prepared(x), model(x), atol=1e-3)
    assert not converted[0]._forward_pre_hooks


def test_hooks_come_and_go() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32)
    block_fused_layers(model)
    assert len(model._forward_pre_hooks) == 1
    unblock_fused_layers(model)
    assert not model._forward_pre_hooks
