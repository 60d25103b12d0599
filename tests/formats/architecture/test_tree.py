"""Module trees: order, shared layers, paths, tensors outside layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fewbit.formats.architecture import tree
from fewbit.formats.architecture.description import Description, Slot
from fewbit.formats.architecture.values import Undescribable
from formats import samples

RELU = {"nn": "ReLU", "arguments": {}}
TOP = {"container": "Module"}


def described(modules: dict[str, Any], tensors: dict[str, Slot] | None = None) -> Description:
    return Description("tree", "Net", {}, modules, tensors or {})


def test_sequentials_and_single_layers_are_trees() -> None:
    for model in (samples.sequential(), nn.Linear(2, 3), nn.Sequential(), nn.Sequential(nn.Sequential(nn.ReLU()))):
        built = tree.build(tree.describe(model))
        assert str(built) == str(model)


def test_a_shared_layer_stays_shared_and_in_its_place() -> None:
    relu = nn.ReLU()
    built: Any = tree.build(tree.describe(nn.Sequential(relu, nn.Tanh(), relu, nn.Sigmoid())))
    assert [type(each).__name__ for each in built] == ["ReLU", "Tanh", "ReLU", "Sigmoid"]
    assert built[0] is built[2]


@pytest.mark.parametrize(
    "model",
    [
        samples.ResidualNet(),
        nn.ModuleList([nn.ReLU()]),
        nn.Sequential(nn.ModuleList()),
        nn.TransformerEncoderLayer(4, 2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_are_no_trees(model: nn.Module) -> None:
    with pytest.raises(Undescribable):
        tree.describe(model)


def test_a_sequential_with_a_hook_is_no_tree() -> None:
    model = nn.Sequential(nn.ReLU())
    model.register_forward_pre_hook(lambda _module, args: args)
    with pytest.raises(Undescribable):
        tree.describe(model)


def test_a_tree_that_computes_nothing_is_refused() -> None:
    for modules in ({"": TOP}, {"": {"container": "Sequential"}, "0": {"container": "ModuleList"}}):
        with pytest.raises(ValueError):
            tree.build(described(modules))
    good = tree.describe(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="details"):
        tree.build(dataclasses.replace(good, details={"nodes": []}))


def test_outer_modules_stop_at_layers() -> None:
    model = samples.sample("residual")
    once, twice = tree.outer_modules(model), tree.outer_modules(model, duplicates=True)
    assert "stem.0" in once
    assert not any(path.startswith("stem.0.") for path in twice)
    assert set(twice) - set(once) == {"same_act"}
    assert list(once)[:3] == ["", "stem", "stem.0"]
    assert list(tree.outer_modules(nn.Linear(1, 1))) == [""]


def test_tensors_outside_layers_are_told_by_kind() -> None:
    slots, constants = tree.own_tensors(samples.ResidualNet())
    kinds = {path: slot.kind for path, slot in slots.items()}
    assert kinds == {"gain": "parameter", "unused": "parameter", "mean": "buffer", "std": "constant"}
    assert list(constants) == ["std"]


def test_containers_keep_their_class_and_others_lose_theirs() -> None:
    model = nn.ModuleDict({"a-b": nn.ModuleList([nn.ReLU()]), "net": samples.ResidualNet()})
    modules = tree.describe_modules(model)
    assert modules[""] == {"container": "ModuleDict"}
    assert modules["a-b"] == {"container": "ModuleList"}
    assert modules["net"] == {"container": "Module"}
    assert modules["net.same_act"] == {"same": "net.act"}


@pytest.mark.parametrize("path", ["a.b", "0", "a-b", "_private", "layer_1.0.conv-x", "x" * 200, "training", "", "a__b"])
def test_plain_paths(path: str) -> None:
    assert tree.is_path(path)


@pytest.mark.parametrize(
    "path",
    [".", "a.", ".a", "a..b", "__class__", "a.__dict__.b", "a b", "a'b", 'a"b', "a\n", "é", "a/b", "a(b)",
    "x" * 201, "a." * 3000 + "a"],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    assert not tree.is_path(path)
    for description in (
        described({"": TOP, path: RELU}),
        described({"": TOP}, {path: Slot("buffer", torch.float32, (1,))}),
    ):
        with pytest.raises(ValueError):
            tree.build_tree(description)


@pytest.mark.parametrize(
    "modules",
    [
        {}, {"a": RELU}, {"": TOP, "a.b": RELU}, {"": RELU, "a": RELU}, {"": TOP, "a": {"same": "b"}},
        {"": TOP, "a": {"same": 3}},
        {"": {"same": ""}}, {"": TOP, "forward": RELU}, {"": TOP, "training": RELU}, {"": TOP, "_modules": RELU},
        {"": TOP, "a": {"container": "Tensor"}}, {"": TOP, "a": {"container": "Module", "x": 1}}, {"": TOP, "a": None},
        {"": TOP, "a": {"nn": "Linear", "arguments": {"in_features": 1, "out_features": 1}}, "a.weight": RELU},
    ],
    ids=str,
)  # fmt: skip
def test_trees_that_no_model_has_are_refused(modules: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        tree.build_tree(described(modules))


@pytest.mark.parametrize("path", ["", "a", "forward", "b.c", "a.weight"])
def test_a_tensor_needs_a_free_place_in_a_container(path: str) -> None:
    with pytest.raises(ValueError):
        tree.build_tree(described({"": TOP, "a": RELU}, {path: Slot("buffer", torch.float32, (1,))}))


def test_find_looks_among_children_alone() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    assert tree.find(model, "0") is model[0]
    assert tree.find(model, "") is model
    for path in ("1", "0.weight", "forward", "__class__", "0.0"):
        with pytest.raises(ValueError):
            tree.find(model, path)
