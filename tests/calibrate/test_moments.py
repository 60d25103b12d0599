"""Streaming moments against NumPy on all the data at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.calibrate.moments import Moments
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor

BATCHES = st.lists(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=6), min_size=1, max_size=8)


def of(batches: list[list[float]]) -> Moments:
    moments = Moments(PerTensor())
    for batch in batches:
        moments.update(torch.tensor(batch))
    return moments


def check(moments: Moments, values: np.ndarray, block: int = 0) -> None:
    assert moments.values[block] == len(values)
    assert moments.nonzero[block] == np.count_nonzero(values)
    assert moments.mean[block].item() == pytest.approx(values.mean(), rel=1e-10, abs=1e-10)
    assert moments.variance[block].item() == pytest.approx(values.var(), rel=1e-9, abs=1e-9)
    assert moments.mean_magnitude[block].item() == pytest.approx(np.abs(values).mean(), rel=1e-10, abs=1e-10)
    assert moments.sum_of_squares[block].item() == pytest.approx((values**2).sum(), rel=1e-9, abs=1e-9)


@given(BATCHES)
def test_batches_equal_all_at_once(batches: list[list[float]]) -> None:
    check(of(batches), np.concatenate([np.array(b, dtype=np.float32) for b in batches]).astype(np.float64))


@given(BATCHES, st.randoms())
def test_any_tree_of_merges_equals_all_at_once(batches: list[list[float]], random: object) -> None:
    parts = [of([batch]) for batch in batches]
    while len(parts) > 1:
        random.shuffle(parts)  # type: ignore[attr-defined]
        parts.append(parts.pop().merge(parts.pop()))
    check(parts[0], np.concatenate([np.array(b, dtype=np.float32) for b in batches]).astype(np.float64))


def test_a_small_variance_beside_a_large_mean_is_not_lost() -> None:
    generator = np.random.default_rng(0)
    values = (4096 + generator.integers(-3, 4, 30000) / 1024).astype(np.float32)  # exact in float32
    moments = Moments(PerTensor())
    for part in np.array_split(values, 7):
        moments.update(torch.from_numpy(part))
    assert moments.variance.item() == pytest.approx(values.astype(np.float64).var(), rel=1e-9)


def test_each_block_by_itself_and_no_padding() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)) + 3
    channels, groups = Moments(PerChannel(0)), Moments(PerGroup(3))
    channels.update(x)
    groups.update(x)
    rows = x.double().numpy()
    for row in range(2):
        check(channels, rows[row], row)
        check(groups, rows[row, :3], 2 * row)
        check(groups, rows[row, 3:], 2 * row + 1)


def test_data_longer_than_a_piece_and_half_precision() -> None:
    x = torch.randn(2, 300_001, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    moments = Moments(PerChannel(0))
    moments.update(x)
    for row in range(2):
        check(moments, x[row].double().numpy(), row)


def test_state_does_not_grow() -> None:
    moments = of([[1.0, 2.0]] * 40)
    for field in ("values", "nonzero", "mean", "squares", "magnitude", "low", "high"):
        assert getattr(moments, field).shape == (1,)
