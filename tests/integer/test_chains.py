"""Which layers feed each other alone is read from the graph, and nothing else is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fewbit.integer.capture import capture
from fewbit.integer.chains import Chain, chains

INFINITY = float("inf")


class Net(nn.Module):
    """Borders, clips, a residual sum, pooling to a classifier, a function that does not scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 1)
        self.e, self.f, self.g = nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(5, 7)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x):
        """[N, 3, 8, 8] to [N, 7]."""
        x = self.c(F.relu(self.b(self.act(self.a(x)))))
        x = x + self.d(x)
        x = F.hardtanh(self.e(F.pad(x, (1, 1, 1, 1))), -1.0, 1.0)
        x = self.g(F.hardswish(self.f(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


def found(model, *inputs):
    model = model.eval()
    return chains(capture(model, inputs), model)


def test_the_chains_of_a_network():
    assert found(Net(), torch.randn(2, 3, 8, 8)) == [
        Chain("a", "b", 0.0, 6.0, True),
        Chain("b", "c", 0.0, INFINITY, False),
        Chain("e", "f", -1.0, 1.0, False),
        Chain("g", "fc", 0.0, INFINITY, False),
    ]


def test_layers_that_are_called_twice_or_share_a_weight_are_left_alone():
    twice = nn.Conv2d(3, 3, 1)
    assert found(nn.Sequential(twice, nn.ReLU(), twice), torch.randn(2, 3, 4, 4)) == []
    one, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    other.weight = one.weight
    assert found(nn.Sequential(one, nn.ReLU(), other), torch.randn(2, 3, 4, 4)) == []


def test_a_flattened_picture_is_no_channel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    assert found(model, torch.randn(2, 3, 4, 4)) == []
    assert len(found(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 4))) == 1
    last_axis = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2))  # over positions, not channels
    assert found(last_axis, torch.randn(2, 3, 4)) == []


def test_what_others_read_is_no_chain():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = F.relu(self.a(x))
            return y, self.b(y)

    assert found(Branch(), torch.randn(2, 4)) == []
