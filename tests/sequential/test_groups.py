"""Shared inputs, from the table or seen."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs, tiny

from fewbit.models import layout
from fewbit.models.generic import layout as generic_layout
from fewbit.nn import kinds
from fewbit.recipe import as_recipe
from fewbit.sequential.groups import shared_inputs
from fewbit.sequential.ranks import Ranks


@pytest.mark.parametrize("known", [True, False])
def test_queries_keys_and_values_share_their_input(known: bool) -> None:
    model = tiny("llama")
    block = (layout if known else generic_layout)(model).blocks[0]
    module = model.get_submodule(block.name)
    plans = as_recipe("W4A16").plan((f"{block.name}.{name}", kind) for name, _, kind in kinds.quantizable(module))
    plans = [plan for plan in plans if "v_proj" not in plan.name]

    def run() -> None:
        with torch.no_grad():
            model(**inputs("llama"))

    groups = shared_inputs(block, module, plans, None if known else run, Ranks())
    parts = [[plan.name.rpartition(".")[2] for plan in group] for group in groups]
    assert parts == [["q_proj", "k_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_what_no_group_knows_stands_alone() -> None:
    model = tiny("llama")
    block = layout(model).blocks[0]
    plans = as_recipe("W4A16").plan([(f"{block.name}.extra", "Linear")])
    assert shared_inputs(block, model.get_submodule(block.name), plans, None, Ranks()) == [(plans[0],)]
