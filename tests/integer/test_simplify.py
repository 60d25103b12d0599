from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from integer_cases import KINDS, pictures, quantized, seeded
from torch import Tensor, nn

from fewbit.integer.capture import Capture, capture
from fewbit.integer.ir import Node
from fewbit.integer.simplify import simplify
from fewbit.integer.simulate import simulate


class Layers(nn.Module):
    """A convolution behind and before a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def captured(function) -> Capture:
    import fewbit

    made = fewbit.quantize(seeded(Layers(function)), "W8A8", [pictures()])
    found = capture(made, (pictures(),))
    simplify(found)
    return found


def run(found: Capture, x: Tensor) -> list[Tensor]:
    return simulate(found.nodes, {found.inputs[0]: x}, found.constants, {}, found.outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_simplifying_changes_no_value(kind: type[nn.Module]) -> None:
    before, after = (capture(quantized(kind), (pictures(),)) for _ in range(2))
    simplify(after)
    assert len(after.nodes) < len(before.nodes)
    for a, b in zip(run(before, pictures()), run(after, pictures())):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "clip"),
    [
        (F.relu, (0.0, float("inf"))),
        (F.relu6, (0.0, 6.0)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda x: x.clamp(max=2.0), (-float("inf"), 2.0)),
        (lambda x: F.relu(x).clamp(-1.0, 0.5), (0.0, 0.5)),
        (lambda x: F.relu6(x).clamp_min(7.0), (7.0, 7.0)),
    ],
)
def test_clips_are_absorbed(function, clip: tuple[float, float]) -> None:
    nodes = captured(function).nodes
    assert [node.op for node in nodes] == ["conv", "conv"]
    assert nodes[0].clip == clip


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: F.hardswish(F.gelu(x)) + x,
        lambda x: (x * 2).tanh() * x.sigmoid() - 1,
    ],
)
def test_any_function_of_one_value_is_one_table(function) -> None:
    nodes = captured(function).nodes
    assert [node.op for node in nodes] == ["conv", "table", "conv"]
    x = torch.linspace(-4, 4, 50)
    assert torch.allclose(nodes[1].target(x), function(x), atol=1e-6)  # type: ignore[misc]


def test_a_value_in_the_middle_that_others_read_is_kept() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        return torch.cat([torch.tanh(y)[:, :2], F.avg_pool2d(y, 1)[:, :2]], dim=1)

    ops = [node.op for node in captured(function).nodes]
    assert ops.count("table") == 2


def test_borders_of_zeros_go_into_the_convolution() -> None:
    nodes = captured(lambda x: F.pad(x, (1, 2, 3, 0))).nodes
    assert [node.op for node in nodes] == ["conv", "conv"]
    assert nodes[1].geometry is not None
    assert nodes[1].geometry.padding == ((3, 0), (1, 2))


def test_an_activation_that_is_not_alone_stays_a_table() -> None:
    def function(x: Tensor) -> Tensor:
        return F.relu(x) + F.avg_pool2d(x, 1)

    found = captured(function)
    assert [node.op for node in found.nodes] == ["conv", "table", "avg_pool", "add", "conv"]
    assert all(isinstance(node, Node) for node in found.nodes)
