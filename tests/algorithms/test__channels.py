"""Pooling over the input channels of one feeding channel."""

from __future__ import annotations

import torch

from fewbit.algorithms._channels import evenly, normalized, pooled


def test_values_are_pooled_by_feeding_channel() -> None:
    values, channels = torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([0, 1, 0, 1])
    assert pooled(values, channels, "mean").tolist() == [2, 6]
    assert pooled(values, channels, "amax").tolist() == [3, 7]


def test_the_middle_of_a_scale_is_1() -> None:
    scale = normalized(torch.tensor([0.5, 2.0, 8.0]))
    assert float(scale.max() * scale.min()) == 1
    assert normalized(torch.tensor([1e-12, 1e12])).tolist() == [torch.tensor(1e-4).item(), 1e4]


def test_rows_are_taken_evenly() -> None:
    weight = torch.arange(10.0)[:, None]
    assert evenly(weight, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert evenly(weight, 10) is weight
