"""Buffers whose dtype is part of what they mean."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewbit.nn.precision import FixedDtypes


class Fixed(FixedDtypes):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.1, 1e-30]))
        self.register_buffer("codes", torch.tensor([1, 2], dtype=torch.uint8))
        self.register_buffer("none", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_a_model_leaves_them_and_changes_the_rest(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"fixed": Fixed(), "linear": nn.Linear(2, 2)})
    before = copy.deepcopy(model["fixed"].state_dict())
    for cast in (lambda m: m.to(dtype), lambda m: m.half(), lambda m: m.float(), lambda m: m.to(torch.device("cpu"))):
        cast(model)
        for name, value in model["fixed"].state_dict().items():
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name])
    assert model.to(dtype)["linear"].weight.dtype == dtype


def test_they_move_to_another_device() -> None:
    fixed = Fixed().to("meta")
    assert fixed.scale.device.type == "meta"
    assert fixed.codes.device.type == "meta"


def test_moving_and_casting_at_once() -> None:
    fixed = Fixed().to("meta", torch.float16)
    assert fixed.scale.device.type == "meta"
    assert fixed.scale.dtype == torch.float32


def test_modules_inside_are_cast_as_ever() -> None:
    class Outer(FixedDtypes):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm1d(2)

    assert Outer().half().inner.running_mean.dtype == torch.float16
