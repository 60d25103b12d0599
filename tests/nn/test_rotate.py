"""A rotated model computes what it did, and its weights and activations have fewer outliers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, MIXTURES, output, tiny
from torch import nn

import fewbit
from fewbit.nn.experts import split_experts
from fewbit.nn.rotate import rotate

ROTATED = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", *MIXTURES]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_stay(family: str) -> None:
    model = tiny(family)
    split_experts(model)
    before = output(model, family)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    notes = rotate(model)
    assert (output(model, family) - before).abs().max() < 2e-4 * before.abs().max()
    stayed = "the residual stream was not rotated" in notes[0]
    assert stayed == (family not in ROTATED)
    assert any("values of" in note for note in notes)
    embedding = next(name for name in weights if "embed" in name or "wte" in name)
    assert torch.equal(weights[embedding], model.get_parameter(embedding)) == stayed


def test_a_tied_output_layer_gets_its_own_weight_and_is_saved(tmp_path: Path) -> None:
    model = tiny("qwen3", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = output(model, "qwen3")
    notes = rotate(model)
    assert "weight of its own" in notes[0]
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert (output(model, "qwen3") - before).abs().max() < 2e-4 * before.abs().max()
    q = fewbit.quantize(model, "W8A8-dynamic")
    fewbit.save(q, tmp_path / "saved")
    again = fewbit.load(tmp_path / "saved")
    assert torch.equal(output(again, "qwen3"), output(q, "qwen3"))


def test_norms_multiply_by_one_afterwards() -> None:
    for family, one in (("llama", 1), ("gemma", 0)):
        model = tiny(family)
        rotate(model)
        assert bool((model.model.layers[0].input_layernorm.weight == one).all())
        assert bool((model.model.norm.weight == one).all())


def test_outliers_are_spread() -> None:
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:, 3] *= 50
    weight = model.model.layers[0].self_attn.q_proj.weight.detach()

    def kurtosis() -> float:
        return float(weight.pow(4).mean() / weight.square().mean() ** 2)

    before = kurtosis()
    rotate(model)
    assert kurtosis() < before / 4


def test_models_without_a_table_and_without_a_head() -> None:
    assert "no table" in rotate(nn.Sequential(nn.Linear(4, 4)))[0]
    base = tiny("llama").model
    before = base(torch.arange(5)[None]).last_hidden_state
    assert "no output layer" in rotate(base)[0]
    assert torch.allclose(base(torch.arange(5)[None]).last_hidden_state, before, atol=1e-4)
