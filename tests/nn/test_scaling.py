"""Scales for whole models: outputs stay, outliers go, and what cannot be scaled is told."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CAUSAL, FAMILIES, inputs, output, tiny
from torch import nn

import fewbit
from fewbit.algorithms import awq, smoothquant
from fewbit.errors import FewbitError
from fewbit.models import layout
from fewbit.nn import kinds
from fewbit.nn.experts import split_experts
from fewbit.nn.scaling import find_targets, scale_model
from fewbit.recipe import LayerPlan, Recipe


def plans(model: nn.Module, scheme: str) -> list[LayerPlan]:
    return Recipe(scheme).plan((name, kind) for name, _, kind in kinds.quantizable(model))


def with_outliers(family: str) -> nn.Module:
    """A model whose first norm makes one channel much larger than the rest, as trained ones have."""
    model = tiny(family)
    norm = model.model.layers[0].input_layernorm
    with torch.no_grad():
        norm.weight[5] = 80
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(model.model.layers[0].self_attn, name).weight[:, 5] /= 40
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("scheme", "algorithm"), [("W4A16-g16", awq), ("W8A8-dynamic", smoothquant)])
def test_the_float_model_computes_the_same(family: str, scheme: str, algorithm: object) -> None:
    model = tiny(family)
    split_experts(model)
    before = output(model, family)
    notes = scale_model(model, plans(model, scheme), algorithm, [inputs(family, 1), inputs(family, 2)])  # type: ignore[arg-type]
    assert "scaled the inputs of" in notes[0]
    if family in CAUSAL:  # the two groups that can be scaled in encoders may be best as they are
        assert "inputs of 0 groups" not in notes[0]
    assert (output(model, family) - before).abs().max() < 5e-4 * before.abs().max()


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "W8A8"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_smoothing_brings_the_outputs_nearer(family: str, scheme: str) -> None:
    model = with_outliers(family)
    batches = [inputs(family, seed) for seed in range(1, 5)]
    expected = output(model, family)

    def error(algorithm: str) -> float:
        q = fewbit.quantize(model, scheme, batches, algorithm=algorithm, calibrator="minmax")
        return float((output(q, family) - expected).norm())

    assert error("smoothquant") < 0.8 * error("rtn")


def test_progress_is_told() -> None:
    model, told = tiny("llama"), []
    scale_model(model, plans(model, "W8A8"), smoothquant, [inputs("llama")], lambda *step: told.append(step))
    assert told[0] == ("sample inputs", 1, 1)
    assert told[-1] == ("search scales (smoothquant)", 8, 8)


def test_only_what_is_quantized_is_searched_and_all_readers_are_scaled() -> None:
    model = with_outliers("llama")
    skipped = [plan for plan in plans(model, "W4A16-g16") if not plan.name.endswith("q_proj")]
    before = output(model, "llama")
    target = find_targets(model, layout(model), skipped, awq)[0]
    assert [name.rpartition(".")[2] for name in target.planned] == ["k_proj", "v_proj"]
    scale_model(model, skipped, awq, [inputs("llama", 1)])
    assert (output(model, "llama") - before).abs().max() < 5e-4 * before.abs().max()


def test_what_cannot_be_scaled_is_told() -> None:
    model = tiny("llama")
    assert "quantized activations" in scale_model(model, plans(model, "W4A16-g16"), smoothquant, [inputs("llama")])[0]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert "no table" in scale_model(plain, plans(plain, "W4A16"), awq, [torch.randn(2, 4)])[0]
    with pytest.raises(FewbitError, match="awq needs calibration data"):
        scale_model(model, plans(model, "W4A16"), awq, None)


def test_experts_that_no_token_reached_stay() -> None:
    model = tiny("mixtral", num_experts_per_tok=1)
    split_experts(model)
    experts = model.model.layers[0].mlp.experts
    before = [expert.down_proj.weight.clone() for expert in experts]
    batch = {"input_ids": torch.full((1, 2), 7)}
    reached: set[int] = set()
    for number, expert in enumerate(experts):
        expert.register_forward_hook(lambda *_, number=number: reached.add(number))
    scale_model(model, plans(model, "W4A16-g16"), awq, [batch])
    assert 0 < len(reached) < 4
    for number, expert in enumerate(experts):
        if number not in reached:
            assert torch.equal(expert.down_proj.weight, before[number])


def test_logits_are_not_computed_for_what_comes_before_them() -> None:
    model, calls = tiny("gemma3_text"), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda *_: calls.append(1))
    plans = Recipe("W4A16-g16").plan((name, kind) for name, _, kind in kinds.quantizable(model))
    notes = scale_model(model, plans, awq, [inputs("gemma3_text")])
    assert "scaled the inputs" in notes[0]
    assert not calls
    assert model.get_output_embeddings() is head
