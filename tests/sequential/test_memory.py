"""Every family goes through the sequential pipeline in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, inputs, output, tiny
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.nn import kinds, quantized_layers
from fewbit.nn.plan import join_tied
from fewbit.recipe import LayerPlan, as_recipe
from fewbit.sequential.memory import has_blocks, quantize_blocks
from fewbit.sequential.solve import Settings


def quantized(model: nn.Module, scheme: str, batches: list[Any], algorithm: str = "rtn") -> tuple[nn.Module, list[str]]:
    work, recipe = copy.deepcopy(model), as_recipe(scheme)
    plans, _ = join_tied(work, recipe.plan((name, kind) for name, _, kind in kinds.quantizable(work)))
    return work, quantize_blocks(work, plans, batches, Settings(recipe, algorithm))


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_static_activations_of_every_family(family: str) -> None:
    model = tiny(family)
    made, notes = quantized(model, "W8A8", [inputs(family, seed=seed) for seed in range(2)])
    assert len(quantized_layers(made)) == sum(1 for _ in kinds.quantizable(model))
    assert far(output(made, family), output(model, family)) < 0.15
    assert not notes


def test_a_block_sees_what_the_quantized_blocks_before_it_put_out() -> None:
    """The range of a later block's input is that of the quantized model, not of the float one."""
    model = tiny("llama")
    ids = inputs("llama", batch=1)
    made, _ = quantized(model, "W4A8", [ids])
    seen: list[Tensor] = []
    layer = made.get_submodule("model.layers.1.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        made(**ids)
    own = layer.input_quantizer.bounds()
    reference, _ = quantized(model, "W4A8-dynamic", [ids])
    assert own[1] > own[0]
    assert len(seen) == 1
    assert reference is not made


def test_results_do_not_depend_on_which_rows_share_a_batch() -> None:
    model, both = tiny("gemma3_text"), inputs("gemma3_text", batch=4)["input_ids"]
    one, _ = quantized(model, "W8A8", [both])
    other, _ = quantized(model, "W8A8", [both[:1], both[1:3], both[3:]])
    mine, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_which_models_have_blocks() -> None:
    assert has_blocks(tiny("llama"))
    assert not has_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_blocks_of_an_unknown_family_are_found() -> None:
    model = tiny("llama")
    model.config.model_type = "unheard_of"
    made, _ = quantized(model, "W8A8", [inputs("llama")])
    assert far(output(made, "llama"), output(model, "llama")) < 0.1


def test_infinite_outputs_name_the_block() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(float("inf"))
    with pytest.raises(FewbitError, match=r"model\.layers\.1"):
        quantized(model, "W8A16", [inputs("llama")])


def test_skipped_layers_stay_float() -> None:
    model = tiny("llama")
    recipe = as_recipe("W8A8")
    plans = recipe.plan((name, kind) for name, _, kind in kinds.quantizable(model))
    plans = [LayerPlan(p.name, p.kind, p.scheme if "layers.1" in p.name else None, "") for p in plans]
    work = copy.deepcopy(model)
    quantize_blocks(work, plans, [inputs("llama")], Settings(recipe))
    assert len(quantized_layers(work)) == 7
    assert isinstance(work.lm_head, nn.Linear)


@pytest.mark.parametrize("at", ["mlp", "input_layernorm"])
@pytest.mark.parametrize("scheme", ["W4A16-g16", "W8A8", "W3A16-g16"])
def test_a_model_that_fails_is_told_with_block_and_window(at: str, scheme: str) -> None:
    model, left = tiny("llama"), [3]

    def fail(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("boom\nin my own code")

    model.model.layers[1].get_submodule(at).register_forward_pre_hook(fail)
    with pytest.raises(FewbitError, match=r"block model\.layers\.1 failed on calibration window \d+: boom in my own"):
        quantized(model, scheme, [inputs("llama", batch=5)])
