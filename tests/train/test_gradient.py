"""Values with gradients of another's."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from fewbit.train.gradient import recomputing, substitute


def test_the_value_is_exact_and_the_gradient_is_the_sources() -> None:
    source = torch.randn(5, dtype=torch.float64, requires_grad=True)
    value = torch.randn(5, requires_grad=True)
    out = substitute(source, value, 0.25)
    assert torch.equal(out, value)
    out.backward(torch.arange(5.0))
    assert torch.equal(source.grad, torch.arange(5.0, dtype=torch.float64) / 4)
    assert value.grad is None


def test_a_repeated_forward_is_told_from_the_first() -> None:
    seen: list[bool] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(recomputing())
        return x.sin()

    checkpoint(forward, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]
    assert not recomputing()
