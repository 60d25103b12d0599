"""Plain layer rules for models of any architecture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.models import generic


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) * self.b(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Linear(4, 4) for _ in range(9)])  # linears alone are no blocks
        self.body = nn.ModuleList([Block() for _ in range(3)])
        self.mixed = nn.Sequential(Block(), nn.ReLU(), Block(), nn.ReLU(), Block())


def test_blocks_are_the_longest_list_of_one_class() -> None:
    found = generic.layout(Net())
    assert [block.name for block in found.blocks] == ["body.0", "body.1", "body.2"]
    assert [group.linears for group in found.blocks[1].groups] == [
        ("body.1.a",),
        ("body.1.b",),
        ("body.1.c",),
        ("body.1.never",),
    ]
    assert all(group.feed is None and group.why for block in found.blocks for group in block.groups)


def test_a_model_that_is_a_list_of_blocks() -> None:
    found = generic.layout(nn.Sequential(Block(), Block()))
    assert [block.name for block in found.blocks] == ["0", "1"]


def test_a_model_without_blocks() -> None:
    assert generic.layout(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).blocks == ()


def test_linears_that_are_given_one_tensor_share_it() -> None:
    block, x = Block(), torch.randn(2, 4)
    groups = generic.shared_inputs(block, lambda: block(x), "body.0")
    assert [group.linears for group in groups] == [("body.0.a", "body.0.b"), ("body.0.c",), ("body.0.never",)]
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_an_input_that_was_changed_in_place_is_another_one() -> None:
    class InPlace(Block):
        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            return first + self.b(x.add_(1))

    block, x = InPlace(), torch.randn(2, 4)
    with torch.no_grad():
        groups = generic.shared_inputs(block, lambda: block(x))
    assert [group.linears for group in groups][:2] == [("a",), ("b",)]


def test_a_linear_that_runs_twice_stays_in_its_first_group() -> None:
    class Twice(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x) + self.b(x))

    block, x = Twice(), torch.randn(2, 4)
    assert next(g.linears for g in generic.shared_inputs(block, lambda: block(x))) == ("a", "b")
