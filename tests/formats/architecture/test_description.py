"""Descriptions as JSON, and the check of a JSON object's members."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from fewbit.formats.architecture.description import Description, Slot, members_of

FULL = Description(
    "graph",
    "Net",
    {"nodes": [1, {"a": None}]},
    {"": {"container": "Module"}},
    {"w": Slot("parameter", torch.float32, (2, 3)), "c": Slot("constant", torch.int8, ())},
    {"b.weight.packed": "a.weight.packed"},
)


def test_a_description_comes_back_from_json() -> None:
    assert Description.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    empty = Description("tree", "Linear")
    assert Description.from_json(json.loads(json.dumps(empty.to_json()))) == empty


def test_the_order_of_modules_is_kept() -> None:
    modules: dict[str, Any] = {"": None, "2": None, "0": None}
    written = json.loads(json.dumps(Description("tree", "X", {}, modules).to_json()))
    assert list(Description.from_json(written).modules) == ["", "2", "0"]


def test_slots_tell_of_tensors() -> None:
    assert Slot.of(torch.zeros(2, 3, dtype=torch.int16), "buffer") == Slot("buffer", torch.int16, (2, 3))
    parameter = Slot("parameter", torch.float16, (4,)).empty()
    assert isinstance(parameter, nn.Parameter)
    assert parameter.is_meta
    assert (parameter.dtype, parameter.shape, parameter.requires_grad) == (torch.float16, (4,), True)
    whole = Slot("parameter", torch.int8, (4,)).empty()
    assert isinstance(whole, nn.Parameter)
    assert not whole.requires_grad
    assert not isinstance(Slot("constant", torch.int8, (4,)).empty(), nn.Parameter)


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, "parameter", ["parameter", "float32"], ["parameter", "float32", [1], 2],
        ["other", "float32", [1]],
        [["parameter"], "float32", [1]], ["buffer", "load", [1]], ["buffer", 3, [1]], ["buffer", ["float32"], [1]],
        ["buffer", "float32", 3], ["buffer", "float32", [-1]], ["buffer", "float32", [1.0]], ["buffer",
        "float32", [True]],
        ["buffer", "float32", [2**60]], ["buffer", "float32", [1] * 99], ["buffer", "float32", ["1"]],
    ],
    ids=str,
)  # fmt: skip
def test_slots_of_another_form_are_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        Slot.from_json(value)


@pytest.mark.parametrize("member", ["kind", "class", "details", "modules", "tensors", "ties"])
def test_every_member_must_be_there_and_of_its_type(member: str) -> None:
    without = FULL.to_json()
    del without[member]
    with pytest.raises(ValueError, match=f"no member '{member}'"):
        Description.from_json(without)
    for value in (None, 1, [], True):
        with pytest.raises(ValueError, match=f"'{member}' of a wrong type"):
            Description.from_json({**FULL.to_json(), member: value})
    with pytest.raises(ValueError, match="unexpected member 'z'"):
        Description.from_json({**FULL.to_json(), "z": 1})


def test_ties_are_paths() -> None:
    with pytest.raises(ValueError, match="tie"):
        Description.from_json({**FULL.to_json(), "ties": {"a": 3}})


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_only_objects_have_members(value: Any) -> None:
    with pytest.raises(ValueError, match="object"):
        members_of(value, {})


def test_a_bool_is_no_int() -> None:
    assert members_of({"a": 1}, {"a": int}) == {"a": 1}
    with pytest.raises(ValueError):
        members_of({"a": True}, {"a": int})
    assert members_of({"a": None}, {"a": (str, type(None))}) == {"a": None}
