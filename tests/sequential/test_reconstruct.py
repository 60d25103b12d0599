"""Learned rounding in the pipeline: blocks come nearer to what they put out in float."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import tiny

import fewbit
from fewbit.algorithms import autoround
from fewbit.nn import quantized_layers
from fewbit.recipe import Recipe, Rule


def data() -> list[torch.Tensor]:
    return [torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(i)) for i in range(10)]


def error(model, quantized) -> float:
    with torch.no_grad():
        pairs = [(model(x).logits, quantized(x).logits) for x in data()]
    return sum(float((a - b).square().mean()) for a, b in pairs)


@pytest.mark.parametrize(("family", "spec"), [("llama", "W2A16-g8"), ("gpt2", "W2A16-g8"), ("llama", "W4A8-dynamic")])
def test_autoround_is_better_than_its_start_and_deterministic(
    family: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family).eval()
    schedules = tuple(dataclasses.replace(each, steps=30, batch=4, scales=3e-3) for each in autoround.RECONSTRUCTS)
    monkeypatch.setattr(autoround, "RECONSTRUCTS", schedules)
    learned = fewbit.quantize(model, spec, data(), algorithm="autoround")
    start = fewbit.quantize(model, spec, data(), algorithm="gptq")
    assert error(model, learned) < error(model, start)
    again = fewbit.quantize(model, spec, data(), algorithm="autoround")
    for name, value in learned.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert len(quantized_layers(learned)) == len(quantized_layers(start))


def test_what_is_not_learned_is_told() -> None:
    model = tiny("llama").eval()
    about = fewbit.nn.info(fewbit.quantize(model, "W4A16-g16", data(), algorithm="autoround"))
    assert about is not None
    assert not [note for note in about.notes if "not learned" in note]
    recipe = Recipe("W4A16-g16", rules=(Rule("*q_proj", scheme="W8A16"),))
    about = fewbit.nn.info(fewbit.quantize(model, recipe, data(), algorithm="autoround"))
    assert about is not None
    (note,) = [note for note in about.notes if "not learned" in note]
    assert note.endswith("it is not learned for model.layers.0.self_attn.q_proj and 1 more")
