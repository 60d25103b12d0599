"""Split experts compute what the fused ones do, and are layers like all others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import MIXTURES, inputs, output, tiny
from torch import nn

import fewbit
from fewbit.models import layout
from fewbit.nn import quantized_layers
from fewbit.nn.experts import Expert, SplitExperts, has_split_experts, is_fused, split_experts
from fewbit.nn.fold_scales import feed_channels, fold_scale


@pytest.mark.parametrize("family", MIXTURES)
def test_the_outputs_stay(family: str) -> None:
    model = tiny(family)
    before = output(model, family)
    assert split_experts(model) == (1 if family == "qwen2_moe" else 2)
    assert has_split_experts(model)
    assert (output(model, family) - before).abs().max() < 1e-5 * before.abs().max()
    assert split_experts(model) == 0


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_in_the_tables(family: str) -> None:
    model = tiny(family)
    split_experts(model)
    before = output(model, family)
    found = layout(model)
    block = found.blocks[1]
    own = [group for group in block.groups if "experts.2" in group.linears[0]]
    prefix = f"{block.name}.mlp.experts.2"
    assert [group.linears for group in own] == [(f"{prefix}.gate_proj", f"{prefix}.up_proj"), (f"{prefix}.down_proj",)]
    assert own[1].feed is not None
    assert own[1].feed.path == f"{prefix}.up_proj"
    for group in (group for block in found.blocks for group in block.groups):
        channels = feed_channels(model, found, group)
        if channels is not None:
            fold_scale(model, found, group, torch.rand(int(channels.max()) + 1) + 0.5)
    assert (output(model, family) - before).abs().max() < 2e-4 * before.abs().max()


def test_the_meta_device_is_enough() -> None:
    model = tiny("mixtral")
    with torch.device("meta"):
        empty = type(model)(model.config)
    split_experts(empty)
    split_experts(model)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_a_quantized_mixture_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny("mixtral")
    split_experts(model)
    q = fewbit.quantize(model, "W8A8-dynamic")
    assert sum("experts" in name for name in quantized_layers(q)) == 2 * 4 * 3
    fewbit.save(q, tmp_path / "saved")
    again = fewbit.load(tmp_path / "saved")
    assert torch.equal(again(**inputs("mixtral")).logits, q(**inputs("mixtral")).logits)


def test_tokens_without_an_expert_get_nothing() -> None:
    linear = nn.Linear(4, 4, bias=False)
    experts = SplitExperts([Expert(linear, linear, linear, torch.relu)])
    out = experts(torch.ones(2, 4), torch.tensor([[1], [0]]), torch.ones(2, 1))
    assert not out[0].any()
    assert torch.equal(out[1], experts[0](torch.ones(1, 4))[0])


def test_other_experts_stay_fused() -> None:
    model = tiny("mixtral")
    experts = model.model.layers[0].mlp.experts
    assert is_fused(experts)
    for attribute, value in (("has_bias", True), ("is_transposed", True), ("is_concatenated", False)):
        before = getattr(experts, attribute)
        setattr(experts, attribute, value)
        assert not is_fused(experts)
        setattr(experts, attribute, before)
    assert not is_fused(nn.Linear(2, 2))
