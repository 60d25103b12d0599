"""Moving ranges: the calibrator of that name, as buffers."""

from __future__ import annotations

import pytest
import torch

from fewbit.calibrate import moving_average
from fewbit.numbers.granularity import PerTensor
from fewbit.train.observer import MovingRange


def test_averages_are_the_calibrators() -> None:
    mine, theirs = MovingRange(0.9), moving_average.MovingAverage(PerTensor(), 0.9)
    for seed in range(7):
        x = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        mine.update(x)
        theirs.update(x)
        low, high = theirs.averages()
        assert mine.bounds()[0].item() == pytest.approx(low.item(), rel=1e-5)
        assert mine.bounds()[1].item() == pytest.approx(high.item(), rel=1e-5)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 0.0]), torch.empty(0, 3)])
def test_a_batch_without_a_range_leaves_it_as_it_was(bad: torch.Tensor) -> None:
    observer = MovingRange()
    observer.update(torch.tensor([-1.0, 2.0]))
    before = observer.bounds()
    observer.update(bad)
    assert observer.bounds() == before


def test_a_start_counts_as_many_batches() -> None:
    observer = MovingRange(0.9)
    observer.start(torch.tensor(-1.0), torch.tensor(1.0))
    observer.update(torch.tensor([-2.0, 2.0]))
    assert [end.item() for end in observer.bounds()] == pytest.approx([-1.1, 1.1])
