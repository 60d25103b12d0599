"""Few bits are calibrated together behind attention, and the module that runs such layers is found."""

from __future__ import annotations

import pytest
from tiny_models import tiny
from torch import nn

from fewbit import models
from fewbit.models.layout import Block
from fewbit.nn.experts import split_experts
from fewbit.recipe import LayerPlan, Recipe, Rule
from fewbit.sequential.turns import turns_of, what_runs


def groups_of(block: Block, recipe: Recipe) -> list[list[LayerPlan]]:
    plans = {plan.name: plan for plan in recipe.plan((name, "Linear") for g in block.groups for name in g.linears)}
    return [[plans[name] for name in group.linears] for group in block.groups]


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W8A16"])
def test_each_group_has_a_turn_from_4_bits_on(scheme: str) -> None:
    block = models.layout(tiny("llama")).blocks[0]
    assert turns_of(block, groups_of(block, Recipe(scheme))) == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W2A16-g16"])
def test_few_bits_share_a_turn_behind_attention(scheme: str) -> None:
    block = models.layout(tiny("llama")).blocks[0]
    assert turns_of(block, groups_of(block, Recipe(scheme))) == [(0,), (1,), (2, 3)]


def test_the_bits_behind_attention_decide() -> None:
    block = models.layout(tiny("llama")).blocks[0]
    fine = Recipe("W3A16-g16", rules=(Rule("*mlp*", weights="int4/g16/sym"),))
    assert turns_of(block, groups_of(block, fine)) == [(0,), (1,), (2,), (3,)]
    coarse = Recipe("W4A16-g16", rules=(Rule("*down_proj", weights="int3/g16/sym"),))
    assert turns_of(block, groups_of(block, coarse)) == [(0,), (1,), (2, 3)]


@pytest.mark.parametrize(
    ("family", "number", "expected"),
    [
        ("llama", 0, ".mlp"),
        ("gpt2", 0, ".mlp"),
        ("opt", 0, ""),
        ("bert", 0, ""),
        ("mixtral", 0, ".mlp.experts"),
        ("qwen2_moe", 1, ".mlp"),
    ],
)
def test_the_module_that_runs_what_is_behind_attention(family: str, number: int, expected: str) -> None:
    model = tiny(family)
    split_experts(model)
    block = models.layout(model).blocks[number]
    assert what_runs(model, block.name, sorted(block.behind_attention)) == block.name + expected


def test_a_list_of_modules_runs_nothing() -> None:
    block = nn.Module()
    block.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model = nn.Module()
    model.block = block
    assert what_runs(model, "block", ["block.experts.0", "block.experts.1"]) == "block"


def test_one_layer_is_run_by_its_parent() -> None:
    model = tiny("llama")
    name = models.layout(model).blocks[0].name
    assert what_runs(model, name, [f"{name}.mlp.up_proj"]) == f"{name}.mlp"
