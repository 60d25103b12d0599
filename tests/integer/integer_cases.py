"""Small networks with everything that lies between layers, and their integer forms, made once."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.integer import Network, integer_network


def seeded(network: nn.Module) -> nn.Module:
    """Weights and running statistics that are neither all alike nor at their start."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                values = torch.randn(tensor.shape, generator=generator) * 0.3
                tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return network.eval()


class Residual(nn.Module):
    """Batch norm, ReLU6, asymmetric borders, sums (one with an activation), a mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] to [N, 5]."""
        x = F.relu6(self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))))
        y = x + self.project(F.relu6(self.depthwise(x)))
        z = F.relu(y + self.again(y))
        return self.head(z.mean((2, 3)))


class Mixed(nn.Module):
    """Concatenation, pooling, resizing, hard-swish, gating, a split, and softmax in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.last = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, 8, 8] to [N, 3]."""
        x = F.hardswish(self.first(x))
        pooled = F.max_pool2d(x, 3, 2, 1)
        wide = F.interpolate(self.left(pooled), scale_factor=2, mode="nearest")
        joined = torch.cat([wide, F.leaky_relu(self.right(x))], dim=1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(joined, 1)))))
        half, other = (joined * gate).chunk(2, dim=1)
        y = F.avg_pool2d(self.last(half + other), 4)
        return torch.softmax(self.head(y.flatten(1)), dim=-1)


def pictures(count: int = 6, size: int = 8) -> Tensor:
    """Seeded pictures [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@functools.cache
def quantized(kind: type[nn.Module], recipe: str = "W8A8") -> nn.Module:
    """The quantized form of a network here."""
    return fewbit.quantize(seeded(kind()), recipe, [pictures()])


@functools.cache
def network(kind: type[nn.Module], recipe: str = "W8A8") -> Network:
    """Its integer graph."""
    return integer_network(quantized(kind, recipe), [pictures()])


KINDS = [Residual, Mixed]
