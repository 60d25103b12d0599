"""Every family's table, held to a tiny random model of the family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CAUSAL, DENSE, FAMILIES, inputs, tiny
from torch import nn

from fewbit import models
from fewbit.models import Feed, Group, generic, layout
from fewbit.models.layout import expand, holds, is_linear, linears


def test_every_table_has_a_tiny_model_here() -> None:
    assert set(models.families()) - {"gemma3"} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_block_is_in_one_group(family: str) -> None:
    model = tiny(family)
    found = layout(model)
    assert found.family == family
    for block in found.blocks:
        grouped = [path for group in block.groups for path in group.linears]
        assert sorted(grouped) == sorted(f"{block.name}.{path}" for path in linears(model.get_submodule(block.name)))
    assert all(block == found.by_name[block.name] for block in found.blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_of_the_table_exists(family: str) -> None:
    found = layout(tiny(family))
    assert found.embeddings
    unknown = [g for block in found.blocks for g in block.groups if "does not know" in g.why or "there is no" in g.why]
    assert all("experts" in g.linears[0] or "shared_expert_gate" in g.linears[0] for g in unknown)
    if family in CAUSAL:
        assert found.head
        assert found.final_norm
    for block in found.blocks:
        for group in block.groups:
            assert (group.feed is None) == bool(group.why)


@pytest.mark.parametrize("family", DENSE)
def test_the_groups_are_the_linears_that_are_given_the_same_tensor(family: str) -> None:
    model = tiny(family)
    found = layout(model)

    def run() -> None:
        with torch.no_grad():
            model(**inputs(family))

    seen = {frozenset(group.linears) for group in generic.shared_inputs(model, run)}
    # all decoder blocks of Whisper read the encoder's output: one tensor, one group a block in the table
    expected = [frozenset(group.linears) for block in found.blocks for group in block.groups]
    for group in expected:
        assert any(group <= other for other in seen)
    apart = [group for group in expected if not any("encoder_attn.k_proj" in path for path in group)]
    assert set(apart) <= seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_that_feeds_a_group_gives_exactly_its_input(family: str) -> None:
    model = tiny(family)
    outputs: dict[str, torch.Tensor] = {}
    given: dict[str, torch.Tensor] = {}
    groups = [group for block in layout(model).blocks for group in block.groups if group.feed is not None]
    for group in groups:
        assert group.feed is not None
        feed = model.get_submodule(group.feed.path)
        feed.register_forward_hook(lambda _m, _a, out, name=group.feed.path: outputs.__setitem__(name, out))
        linear = model.get_submodule(group.linears[0])
        linear.register_forward_pre_hook(lambda _m, args, name=group.linears[0]: given.__setitem__(name, args[0]))
    with torch.no_grad():
        model(**inputs(family))
    for group in groups:
        assert group.feed is not None
        if group.feed.kind.startswith("norm"):
            assert torch.equal(outputs[group.feed.path], given[group.linears[0]])


@pytest.mark.parametrize("family", CAUSAL)
def test_the_meta_device_is_enough(family: str) -> None:
    model = tiny(family)
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert layout(empty) == layout(model)


def test_post_norm_opt_folds_no_norm() -> None:
    model = tiny("opt", do_layer_norm_before=False)
    feeds = [group.feed for block in layout(model).blocks for group in block.groups]
    assert Feed("model.decoder.layers.0.fc1", "linear", "activation_function=relu") in feeds
    assert not any(feed is not None and feed.kind == "norm" for feed in feeds)


def test_opt_with_another_activation_does_not_fold_through_it() -> None:
    model = tiny("opt", activation_function="gelu")
    groups = {group.linears: group for group in layout(model).blocks[0].groups}
    group = groups[("model.decoder.layers.0.fc2",)]
    assert group.feed is None
    assert "activation_function=relu" in group.why


def test_a_base_model_has_the_same_layout_without_its_prefix() -> None:
    whole = tiny("llama")
    base = layout(whole.model)
    assert base.family == "llama"
    assert base.blocks[0].groups[0].linears[0] == "layers.0.self_attn.q_proj"
    assert (base.head, base.final_norm, base.embeddings) == ("", "norm", ("embed_tokens",))


def test_gemma_3_with_pictures_has_its_language_model_found() -> None:
    transformers = pytest.importorskip("transformers")
    text = tiny("gemma3_text").config.to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    with torch.device("meta"):
        model = transformers.Gemma3ForConditionalGeneration(config)
    found = layout(model)
    assert found.family == "gemma3"
    assert (len(found.blocks), found.heads, found.key_value_heads) == (2, 4, 2)
    assert found.head == "lm_head"
    assert found.final_norm == "model.language_model.norm"


def test_what_the_family_does_not_have_gives_way_to_plain_rules() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny("llama").config
            self.parts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)])

    found = layout(Odd())
    assert (found.family, len(found.blocks)) == ("generic", 3)


def test_paths_with_experts_are_expanded() -> None:
    block = nn.Module()
    block.experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(2, 2)}) for _ in range(3)])
    assert expand(block, "experts.*.up") == ["experts.0.up", "experts.1.up", "experts.2.up"]
    assert expand(block, "experts.*.down") == []
    assert expand(block, "others.*.up") == []


def test_each_expert_has_a_group_of_its_own() -> None:
    from fewbit.models.layout import _groups

    block = nn.Module()
    block.experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 2)}) for _ in range(2)])
    made = _groups(block, Group(("experts.*.down",), Feed("experts.*.up", "linear")), None)
    assert [group.feed.path for group in made if group.feed] == ["experts.0.up", "experts.1.up"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_behind_attention(family: str) -> None:
    found = layout(tiny(family))
    for block in found.blocks:
        names = {name for group in block.groups for name in group.linears}
        attention = {name for name in names if any(word in name for word in ("attn", "attention", "self"))}
        first = {f"{block.name}.attention.output.dense"} if "bert" in family or family == "electra" else set()
        assert block.behind_attention == names - attention - first


def test_conditions_of_a_config() -> None:
    class Config:
        flag, name = True, "relu"

    assert holds(Config(), "")
    assert holds(Config(), "flag")
    assert holds(Config(), "name=relu")
    assert not holds(Config(), "name=gelu")
    assert not holds(Config(), "absent")


def test_linears_are_known_by_class() -> None:
    from transformers.pytorch_utils import Conv1D

    assert is_linear(nn.Linear(2, 2))
    assert is_linear(Conv1D(2, 2))
    assert not is_linear(nn.Conv1d(2, 2, 1))
