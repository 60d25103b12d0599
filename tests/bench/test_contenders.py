"""fewbit's own contenders are the quantized layers."""

from __future__ import annotations

import torch

from fewbit.bench.case import Case
from fewbit.bench.contenders import own, schemes


def test_the_schemes_follow_the_case() -> None:
    assert schemes(Case(1, 64, 8, 4, 32)) == ["W4A16-g32", "W4A8-dynamic-g32"]
    assert schemes(Case(1, 64, 8, 8, 0)) == ["W8A16", "W8A8-dynamic"]


def test_they_compute_the_product(case: Case) -> None:
    wanted = case.x @ case.weight.t()
    for contender in own(case):
        first, second = (run() for run in contender.copies[:2])
        assert isinstance(first, torch.Tensor)
        assert torch.equal(first, second)  # type: ignore[arg-type]
        error = (first - wanted).square().sum() / wanted.square().sum()
        assert error < 0.03, contender.name
