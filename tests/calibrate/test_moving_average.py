"""The moving average against its recursion, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.calibrate import moving_average
from fewbit.calibrate.moving_average import MovingAverage, Options
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec

ASYM = QSpec.parse("uint8/tensor/asym")
NUMBERS = st.floats(-100, 100, width=32)
BATCHES = st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=12)


def of(batches: list[list[float]], momentum: float = 0.9) -> MovingAverage:
    statistic = MovingAverage(PerTensor(), momentum)
    for batch in batches:
        statistic.update(torch.tensor(batch))
    return statistic


@given(BATCHES, st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_equals_the_recursion(batches: list[list[float]], momentum: float) -> None:
    low = high = weight = 0.0
    for batch in batches:
        low = momentum * low + (1 - momentum) * min(batch)
        high = momentum * high + (1 - momentum) * max(batch)
        weight = momentum * weight + (1 - momentum)
    found_low, found_high = of(batches, momentum).averages()
    assert found_low.item() == pytest.approx(low / weight, rel=1e-9, abs=1e-9)
    assert found_high.item() == pytest.approx(high / weight, rel=1e-9, abs=1e-9)


@given(BATCHES, st.data())
def test_a_run_then_a_run_is_the_merge_of_both(batches: list[list[float]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(batches)))
    merged = of(batches[:cut]).merge(of(batches[cut:]))
    whole = of(batches)
    torch.testing.assert_close(merged.averages(), whole.averages(), rtol=1e-9, atol=1e-9)
    assert (merged.updates, merged.count) == (whole.updates, whole.count)


def test_one_batch_gives_its_own_range() -> None:
    found = moving_average.solve(of([[-3.0, 7.0]]), ASYM, Options())
    assert (found.lo.item(), found.hi.item()) == (-3, 7)


def test_an_odd_batch_moves_the_range_by_its_share() -> None:
    steady = [[-1.0, 1.0]] * 200
    found = moving_average.solve(of([*steady, [-1.0, 101.0]]), ASYM, Options())
    assert found.hi.item() == pytest.approx(1 + 0.1 * 100)
    assert found.lo.item() == -1


def test_no_momentum_is_the_last_batch() -> None:
    found = moving_average.solve(of([[-5.0, 5.0], [-1.0, 2.0]], 0.0), ASYM, Options(momentum=0.0))
    assert (found.lo.item(), found.hi.item()) == (-1, 2)


def test_order_matters() -> None:
    assert not torch.equal(of([[1.0], [2.0]]).averages()[1], of([[2.0], [1.0]]).averages()[1])


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
def test_a_momentum_that_never_settles_is_refused(momentum: float) -> None:
    with pytest.raises(FewbitError, match="momentum"):
        MovingAverage(PerTensor(), momentum)


def test_key_holds_the_momentum() -> None:
    assert moving_average.statistic_key(Options()) != moving_average.statistic_key(Options(0.5))
    assert moving_average.new_statistic(PerTensor(), Options(0.5)).momentum == 0.5
