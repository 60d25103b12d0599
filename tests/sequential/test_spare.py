"""Tensors that are left are taken again, up to a limit."""

from __future__ import annotations

import pytest
import torch

from fewbit.sequential import spare
from fewbit.sequential.spare import Spare


def test_what_is_left_is_taken_again() -> None:
    kept, one = Spare(), torch.zeros(3, 4)
    kept.give(one)
    assert kept.take((3, 4), torch.float64).dtype == torch.float64
    assert kept.take((4, 3), torch.float32).shape == (4, 3)
    assert kept.take((3, 4), torch.float32) is one
    assert kept.take((3, 4), torch.float32) is not one


def test_it_keeps_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "_MOST", 100)
    kept, tensors = Spare(), [torch.zeros(10) for _ in range(3)]
    for tensor in tensors:
        kept.give(tensor)
    assert [kept.take((10,), torch.float32) is tensor for tensor in (tensors[1], tensors[0], tensors[2])] == [
        True, True, False,
    ]  # fmt: skip
    kept.give(tensors[0])
    assert kept.take((10,), torch.float32) is tensors[0]
