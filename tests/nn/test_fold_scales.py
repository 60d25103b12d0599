"""Scales folded into what feeds a group leave the float model's outputs as they were, in every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, output, tiny
from torch import nn

from fewbit.models import Feed, Group, Layout, layout
from fewbit.nn.fold_scales import feed_channels, fold_scale


def fold_everything(model: nn.Module) -> int:
    """Random scales over three octaves, folded into every group that has a feed."""
    found, folded = layout(model), 0
    generator = torch.Generator().manual_seed(1)
    for block in found.blocks:
        for group in block.groups:
            channels = feed_channels(model, found, group)
            assert (channels is not None) == (group.feed is not None)
            if channels is not None:
                scale = torch.exp2(torch.rand(int(channels.max()) + 1, generator=generator) * 6 - 3)
                fold_scale(model, found, group, scale)
                folded += 1
    return folded


# How many groups of two blocks have a feed: what the table says can be folded.
FOLDED = {"gpt2": 6, "whisper": 3 * 2 + 5 * 2, "bert": 2, "roberta": 2, "xlm_roberta": 2, "electra": 2, "distilbert": 2}
WITH_EXPERTS = {"mixtral": 4, "qwen2_moe": 4 + 2 + 1, "qwen3_moe": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_scale_leaves_the_outputs_unchanged(family: str) -> None:
    model = tiny(family)
    before = output(model, family)
    assert fold_everything(model) == {**FOLDED, **WITH_EXPERTS}.get(family, 8)
    after = output(model, family)
    assert (after - before).abs().max() < 2e-4 * before.abs().max()


def test_every_weight_of_a_folded_group_changed() -> None:
    model, other = tiny("llama"), tiny("llama")
    fold_everything(model)
    same = [n for (n, p), q in zip(model.named_parameters(), other.parameters()) if torch.equal(p, q)]
    assert same == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_key_value_heads_feed_the_channels_of_all_their_query_heads() -> None:
    model = tiny("llama")
    found = layout(model)
    group = next(group for group in found.blocks[0].groups if group.linears[0].endswith("o_proj"))
    channels = feed_channels(model, found, group)  # 4 query heads, 2 key-value heads of width 8
    assert channels is not None
    first, second = list(range(8)), list(range(8, 16))
    assert channels.tolist() == first + first + second + second


def test_a_wrong_scale_would_be_seen() -> None:
    model = tiny("gemma3_text")
    before = output(model, "gemma3_text")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.add_(0.05)
    assert (output(model, "gemma3_text") - before).abs().max() > 1e-3 * before.abs().max()


def test_half_precision_keeps_its_dtype() -> None:
    model = tiny("llama").to(torch.bfloat16)
    fold_everything(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_folded() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(4, elementwise_affine=False), "a": nn.Linear(4, 4), "b": nn.ReLU()})
    empty = Layout("llama", ())
    assert feed_channels(model, empty, Group(("a",))) is None
    assert feed_channels(model, empty, Group(("a",), Feed("norm"))) is None
    assert feed_channels(model, empty, Group(("a",), Feed("missing"))) is None
    assert feed_channels(model, empty, Group(("a",), Feed("b", "linear"))) is None
    narrow = nn.ModuleDict({"a": nn.Linear(4, 4), "feed": nn.Linear(4, 3)})
    assert feed_channels(narrow, empty, Group(("a",), Feed("feed", "linear"))) is None
