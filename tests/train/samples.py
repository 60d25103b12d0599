"""Small networks and loops that the tests of training share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ESTIMATORS = ["lsq", "lsq_plus", "pact", "ste"]


class OneSidedConv2d(nn.Conv2d):
    """Pads by itself, and one more on the right."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class ScaledEmbedding(nn.Embedding):
    """As in models that multiply by the square root of the width."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx) * 4.0


class HalvedLinear(nn.Linear):
    """Changes its input, hands its weight on by name, and adds the bias itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input=input * 0.5, weight=self.weight) + self.bias


class Net(nn.Module):
    """A convolution with batch norm and two linear layers, under gradient checkpointing if asked."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.checkpointed = checkpointed

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(F.relu(self.hidden(x)))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)


def pictures(count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with labels that can be read from its channels' means."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    means = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, -1.0, 0]])
    return x + means[y][:, :, None, None], y


def net(checkpointed: bool = False) -> Net:
    """In evaluation mode, with running statistics of its own data."""
    torch.manual_seed(0)
    model = Net(checkpointed)
    x, _ = pictures(64, seed=1)
    for _ in range(40):
        model(x)
    return model.eval()


def fit(
    model: nn.Module, steps: int = 4, rate: float = 0.05, run: nn.Module | None = None, first: int = 0
) -> list[float]:
    """A plain loop; the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for step in range(first, first + steps):
        x, y = pictures(16, seed=step)
        loss = F.cross_entropy((model if run is None else run)(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
