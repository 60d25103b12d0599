"""Means that follow from batch norms are those of data that is as the batch norms say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fewbit.integer.capture import capture
from fewbit.integer.expected import expected_inputs, mean_rows


class Net(nn.Module):
    """Pointwise layers, so that borders do not matter; a sum; a mean; a layer without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 6, 1)
        self.plain, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        """[N, 3, H, W] to [N, 4]."""
        a = F.relu6(self.a(x))
        x = self.c(F.relu(a + self.b(a)))
        return self.fc(self.plain(x).mean((2, 3)))


def test_they_follow_the_graph():
    torch.manual_seed(0)
    model = Net().eval()
    moments = {name: (torch.randn(n) + 1, torch.rand(n) + 0.5) for name, n in (("a", 8), ("b", 8), ("c", 6))}
    found = expected_inputs(capture(model, (torch.randn(2, 3, 4, 4),)), model, moments)
    assert set(found) == {"b", "c", "plain", "fc"}  # of the network's input nothing is known

    def drawn(name):
        mean, std = moments[name]
        return mean + std * torch.randn(400_000, len(mean), generator=torch.Generator().manual_seed(ord(name)))

    a = drawn("a").clamp(0, 6)
    assert torch.allclose(found["b"], a.mean(0).double(), atol=0.02)
    total = a + drawn("b")
    # The sum is taken to be normal with the variances added, which it nearly is.
    assert torch.allclose(found["c"], total.relu().mean(0).double(), atol=0.05)
    assert torch.allclose(found["plain"], moments["c"][0].double())
    with torch.no_grad():
        plain = model.plain.weight[:, :, 0, 0].double() @ moments["c"][0].double() + model.plain.bias.double()
    assert torch.allclose(found["fc"], plain)


def test_rows_repeat_each_channel_over_the_kernel():
    layer = nn.Conv2d(4, 6, (2, 3), groups=2)
    rows = mean_rows(layer, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert rows.tolist() == [[1.0] * 6 + [2.0] * 6, [3.0] * 6 + [4.0] * 6]
    assert mean_rows(nn.Linear(2, 3), torch.tensor([1.0, 2.0])).tolist() == [[1.0, 2.0]]


def test_what_is_unknown_stays_unknown():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 2)).eval()
    moments = {"0": (torch.zeros(4), torch.ones(4)), "2": (torch.zeros(4), torch.ones(4))}
    assert expected_inputs(capture(model, (torch.randn(2, 3, 2, 2),)), model, moments) == {}
