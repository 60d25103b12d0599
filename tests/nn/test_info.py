"""What a quantized model remembers of how it was made."""

from __future__ import annotations

import copy
import json

import torch
from torch import nn

import fewbit
from fewbit.nn import QuantizationInfo, attach_info, info
from fewbit.recipe import Recipe, Rule


def test_a_float_model_has_none() -> None:
    assert info(nn.Linear(2, 2)) is None


def test_it_goes_to_json_and_back() -> None:
    first = QuantizationInfo({"scheme": "W8A8"}, "rtn", ["a note"], [("conv", "norm")], {"head": "skipped"})
    again = QuantizationInfo.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again == first
    assert isinstance(again.folded[0], tuple)


def test_it_is_no_part_of_the_state_and_goes_with_a_copy() -> None:
    model = nn.Linear(2, 2)
    names = list(model.state_dict())
    attach_info(model, QuantizationInfo({"scheme": "W8A8"}))
    assert list(model.state_dict()) == names
    clone = copy.deepcopy(model)
    assert info(clone) == info(model)
    assert info(clone) is not info(model)


def test_another_attribute_of_that_name_is_not_mistaken() -> None:
    model = nn.Linear(2, 2)
    object.__setattr__(model, "_fewbit_info", "something else")
    assert info(model) is None


def test_defaults_are_not_shared() -> None:
    first, second = QuantizationInfo({}), QuantizationInfo({})
    first.notes.append("mine")
    first.skipped["layer"] = "mine"
    assert (second.notes, second.skipped) == ([], {})


def test_quantize_fills_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    recipe = Recipe("W8A8", rules=(Rule("2", skip=True),))
    found = info(fewbit.quantize(model, recipe, [torch.randn(3, 4)]))
    assert found is not None
    assert Recipe.from_dict(found.recipe) == recipe
    assert found.algorithm == "rtn"
    assert found.folded == [("0", "1")]
    assert found.skipped == {"2": "skipped by rule '2'"}
    assert any("corrected" in note for note in found.notes)
