"""examples/_agreement.py: it counts every value, and would see a single one that differs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbit

from .conftest import EXAMPLES

pytest.importorskip("PIL.Image")
import _agreement
import _pictures

assert EXAMPLES.is_dir()


def test_the_converted_model_gives_every_value_of_the_trained_one_and_a_changed_one_is_seen() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    pictures = _pictures.Pictures(pixels, torch.randint(0, 4, (10,)), ("a", "b", "c", "d"))
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, 1, 1), nn.BatchNorm2d(5), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 4),
    )  # fmt: skip
    trained = fewbit.prepare_qat(network, "W4A4", [_pictures.as_input(pixels)])
    converted = fewbit.convert(trained)
    found = _agreement.agreement(trained.eval(), converted, pictures, batch=4)
    assert (found.agreement, found.different, found.values) == (1.0, 0, 10 * (5 * 64 + 4))
    right = (converted(_pictures.as_input(pixels)).argmax(1) == pictures.labels).sum()
    assert found.trained == found.converted == 10 * right
    other = copy.deepcopy(converted)
    other[5].bias[2] += 1.0  # of the last layer
    assert _agreement.agreement(trained, other, pictures).different == 10
    assert not any(module._forward_hooks for model in (trained, other) for module in model.modules())
