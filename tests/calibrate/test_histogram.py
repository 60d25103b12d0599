"""The streaming histogram against NumPy in exact arithmetic, however the data arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor

# Six orders of magnitude to each side of 1: ranges double dozens of times, and nothing underflows.
MAGNITUDES = st.floats(2.0**-20, 2.0**20, width=32)
VALUES = st.one_of(st.just(0.0), MAGNITUDES, MAGNITUDES.map(lambda v: -v), st.integers(-20, 20).map(lambda e: 2.0**e))
BATCHES = st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=8)


def of(values: list[float] | Tensor, bins: int = 64) -> Histogram:
    histogram = Histogram(PerTensor(), bins)
    histogram.update(torch.as_tensor(values, dtype=torch.float32))
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    fields = ("counts", "exponent", "low", "high")
    return a.count == b.count and all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields)


def expected_counts(values: np.ndarray, bins: int) -> np.ndarray:
    """The definition: R the power of two just above the largest magnitude, bin floor(x / w) + B/2."""
    amax = np.abs(values).max()
    range_ = 2.0 ** (np.floor(np.log2(amax)) + 1) if amax else 1.0
    index = np.floor(values.astype(np.float64) / (2 * range_ / bins)).astype(np.int64) + bins // 2
    return np.bincount(index, minlength=bins)


@given(BATCHES)
def test_batches_give_the_counts_of_the_definition(batches: list[list[float]]) -> None:
    histogram = Histogram(PerTensor(), 64)
    for batch in batches:
        histogram.update(torch.tensor(batch))
    everything = np.array([v for batch in batches for v in batch], dtype=np.float32)
    np.testing.assert_array_equal(histogram.counts[0].numpy(), expected_counts(everything, 64))
    assert histogram.low.item() == everything.min()
    assert histogram.high.item() == everything.max()
    assert histogram.count == len(everything)


@settings(max_examples=60)
@given(BATCHES, st.randoms())
def test_any_tree_of_merges_in_any_order_is_one_update(batches: list[list[float]], random: object) -> None:
    parts = [of(batch) for batch in batches]
    while len(parts) > 1:
        random.shuffle(parts)  # type: ignore[attr-defined]
        parts.append(parts.pop().merge(parts.pop()))
    assert same(parts[0], of([v for batch in batches for v in batch]))


@pytest.mark.parametrize("exponent", range(-114, 128, 11))
def test_powers_of_two_at_the_edge_of_the_range(exponent: int) -> None:
    edge = 2.0**exponent
    below = float(np.nextafter(np.float32(edge), np.float32(0)))
    streamed = of([below, -below])
    streamed.update(torch.tensor([edge, -edge]))
    assert same(streamed, of([edge, -edge, below, -below]))
    assert int(streamed.counts.sum()) == 4
    # below < edge < 2·edge: half of 64 bins on a side, so 1.0 is bin 16 from the middle and below is bin 15
    assert streamed.counts[0, [32 + 16, 32 + 15, 32 - 16]].tolist() == [1, 1, 2]


@given(st.floats(2.0**-115, 2.0**127, width=32), st.booleans())
def test_a_bin_is_at_most_a_4096th_of_the_largest_magnitude(amax: float, negative: bool) -> None:
    histogram = of([-amax if negative else amax], DEFAULT_BINS)
    assert amax / 8192 < histogram.width.item() <= amax / 4096


@pytest.mark.parametrize("amax", [1e-45, 1e-40, 2.0**-126, 2.0**-116, 3.4028234663852886e38])
def test_extreme_magnitudes_are_counted(amax: float) -> None:
    histogram = of([amax, -amax, 0.0], DEFAULT_BINS)
    assert int(histogram.counts.sum()) == 3
    assert histogram.width.item() >= 2.0**-127
    centres, counts = histogram.centres(0)
    assert counts.tolist() == ([1, 1, 1] if amax >= 2.0**-126 else [1, 2])
    assert centres.isfinite().all()


def test_width_and_reciprocal_are_exact_powers_of_two() -> None:
    for exponent in range(-113, 128):
        width = of([2.0**exponent], DEFAULT_BINS).width.item()
        assert width == 2.0 ** (exponent + 1 - 13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_counted_as_their_float32_value(dtype: torch.dtype) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(dtype)
    histogram = Histogram(PerTensor(), 256)
    histogram.update(x)
    assert same(histogram, of(x.float(), 256))


def test_each_block_has_its_own_range() -> None:
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    histogram = Histogram(PerChannel(0), 128)
    histogram.update(x[:, :40])
    histogram.update(10 * x[:, 40:])
    for row in range(4):
        alone = of(x[row, :40], 128)
        alone.update(10 * x[row, 40:])
        assert torch.equal(histogram.counts[row], alone.counts[0])
        assert histogram.exponent[row] == alone.exponent[0]


def test_padding_is_not_counted() -> None:
    histogram = Histogram(PerGroup(4), 64)
    histogram.update(torch.full((2, 6), 3.0))
    assert histogram.counts.sum(1).tolist() == [4, 2, 4, 2]


def test_zeros_alone_then_data() -> None:
    histogram = of([0.0, -0.0, 0.0])
    assert histogram.counts[0, 32].item() == 3
    histogram.update(torch.tensor([-1000.0]))
    assert same(histogram, of([0.0, -0.0, 0.0, -1000.0]))


def test_state_does_not_grow() -> None:
    histogram = of([1.0])
    before = histogram.counts.shape, histogram.exponent.shape, histogram.low.shape
    for i in range(50):
        histogram.update(torch.full((100,), 1.5**i))
    assert (histogram.counts.shape, histogram.exponent.shape, histogram.low.shape) == before
    assert histogram.count == 5001


def test_folded_counts_magnitudes() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    histogram = of(x, 256)
    index = np.floor(x.abs().numpy().astype(np.float64) / histogram.width.item())
    np.testing.assert_array_equal(histogram.folded()[0].numpy(), np.bincount(index.astype(int), minlength=128))


def test_centres_are_within_half_a_bin_of_their_values() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(4)).sort().values
    histogram = of(x, 256)
    centres, counts = histogram.centres(0)
    stand_ins = centres.repeat_interleave(counts)
    assert (stand_ins - x).abs().max() <= histogram.width.item() / 2
    assert stand_ins.min() >= x.min()
    assert stand_ins.max() <= x.max()


def test_coarse_equals_a_direct_count_when_the_edges_meet() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)  # R = 2, 1024 bins to 1
    coarse = of(x, 4096).coarse(256)[0]
    expected, _ = np.histogram(x.numpy(), bins=512, range=(-1, 1))
    np.testing.assert_array_equal(coarse.numpy(), expected)


def test_coarse_spreads_a_bin_evenly_over_its_width() -> None:
    x = torch.arange(1, 60_001) / 60_000 * 1.5  # uniform; 24 bins of 1/16 hold it
    coarse = of(x, 64).coarse(100)[0, 100:]
    assert (coarse - 600).abs().max() < 2


@given(st.lists(VALUES, min_size=1, max_size=30), st.integers(1, 40))
def test_coarse_keeps_every_value_near_its_place(values: list[float], bins: int) -> None:
    histogram = of(values, 1024)
    coarse = histogram.coarse(bins)[0]
    assert coarse.shape == (2 * bins,)
    assert coarse.min() >= 0
    assert coarse.sum().item() == pytest.approx(len(values))
    amax, data = max(abs(v) for v in values), np.array(values)
    if amax:
        edges = torch.arange(-bins, bins + 1) / bins * amax
        for below, edge in zip(torch.cat([torch.zeros(1), coarse.cumsum(0)]), edges):
            width = histogram.width.item()
            assert (data < edge.item() - width).sum() - 1e-9 <= below <= (data < edge.item() + width).sum() + 1e-9


@pytest.mark.parametrize("bins", [0, 2, 3, 1000, -8])
def test_bins_are_a_power_of_two(bins: int) -> None:
    with pytest.raises(FewbitError, match="power of two"):
        Histogram(PerTensor(), bins)


def test_histograms_of_different_bins_do_not_merge() -> None:
    with pytest.raises(FewbitError, match="different settings"):
        of([1.0], 64).merge(of([1.0], 128))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("before", [[], [1.0, 2.0]])
def test_what_is_not_finite_is_refused_by_name_and_not_taken_in(bad: float, before: list[float]) -> None:
    histogram, same_data = Histogram(PerTensor(), 64, "scores"), Histogram(PerTensor(), 64)
    for each in (histogram, same_data):
        if before:
            each.update(torch.tensor(before))
    with pytest.raises(FewbitError, match="scores holds"):
        histogram.update(torch.tensor([100.0, bad]))
    assert same(histogram, same_data)


def test_any_layout_and_shape_gives_the_same_counts() -> None:
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    ways = [of(x), of(x.transpose(0, 2)), of(x.reshape(-1).requires_grad_()), Histogram(PerTensor(), 64)]
    ways[3].update(x.double())
    for histogram in ways:
        histogram.update(3 * x)
    assert all(same(ways[0], each) for each in ways[1:])
