"""Small models that show every way a model is saved, and tools to damage a saved one."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.formats import _manifest, _tensors


class ResidualNet(nn.Module):
    """Functional calls, a residual, shared and unused layers, buffers of both kinds, constants, a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, groups=8)])
        self.act = nn.LeakyReLU(0.2)
        self.same_act = self.act
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.arange(3.0))
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1,), 0.7), persistent=False)
        self.plain = torch.tensor([2.0])

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Any]:
        x = (x - self.mean) / self.std * self.gain * scale
        x = self.stem(x)
        y = x
        for block in self.blocks:
            y = self.same_act(self.act(block(y))) + x
        x = torch.cat([x, y], dim=1)
        x = F.interpolate(self.up(x), scale_factor=0.5, mode="bilinear", align_corners=False)
        x = F.max_pool2d(x, 2) * self.plain + torch.tensor(0.25)
        if mask is not None:
            x = x * mask
        pooled = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return {"logits": self.head(pooled), "rows": (x.shape[0], x[:, 1:, ..., ::2]), "list": [x.mean(dim=(2, 3))]}


class PaddedConv(nn.Conv2d):
    """A layer class with a forward of its own, which fewbit quantizes in place."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class TiedModel(nn.Module):
    """Embedding and output layer share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


class Untraceable(nn.Module):
    """What it computes depends on its input's values, so that no trace can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.own = PaddedConv(4, 4, 2)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("offset", torch.tensor([0.1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.norm(self.conv(x))) * self.gain + self.offset
        return x if x.sum() > 0 else -x


def sequential() -> nn.Module:
    relu = nn.ReLU()  # twice the same object, before and after layers that differ
    body = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 1, groups=2), relu, nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(16, 5))


def padded() -> nn.Module:
    return nn.Sequential(PaddedConv(3, 4, 2), nn.ReLU6(), PaddedConv(4, 4, 2, bias=False), nn.Flatten(1))


IMAGE, IDS = (2, 3, 8, 8), (2, 5)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (ResidualNet, IMAGE),
    "sequential": (sequential, IMAGE),
    "padded": (padded, IMAGE),
    "tied": (TiedModel, IDS),
    "one layer": (lambda: nn.Linear(8, 3), IMAGE),
}


def example(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if shape == IDS:
        return torch.randint(0, 12, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def float_model(factory: Callable[[], nn.Module]) -> nn.Module:
    """The model with fixed random weights, all norms of its own statistics, in evaluation mode."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = factory().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    torch.set_rng_state(state)
    return model


def quantized(factory: Callable[[], nn.Module], shape: tuple[int, ...], recipe: str = "W8A8") -> nn.Module:
    return fewbit.quantize(float_model(factory), recipe, data=[example(shape, 2)])


@functools.cache
def _sample(name: str, recipe: str | None) -> nn.Module:
    factory, shape = MODELS[name]
    return float_model(factory) if recipe is None else quantized(factory, shape, recipe)


def sample(name: str, recipe: str | None = "W8A8") -> nn.Module:
    """A quantized model of `MODELS`, or the float one; a copy of its own for everyone who asks."""
    return copy.deepcopy(_sample(name, recipe))


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in type and structure, tensors bit for bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same(one, other)
    else:
        assert ours == theirs


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the saved description and give it the digest an attacker would."""
    content = json.loads((folder / _manifest.NAME).read_bytes())
    content.pop("digest")
    content = change(content) or content
    (folder / _manifest.NAME).write_bytes(_manifest.to_bytes(content))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the saved tensors and give them the digests an attacker would."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / _tensors.NAME)
    change(tensors)
    save_file(tensors, folder / _tensors.NAME)
    path = folder / _tensors.NAME
    weights = {"file": _tensors.NAME, "bytes": path.stat().st_size, "sha256": _tensors.sha256(path)}
    rewrite(folder, lambda content: content.update(weights=weights))
