"""The KL search against a literal, slow reading of the published pseudocode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.calibrate import entropy
from fewbit.calibrate.entropy import BINS, SMOOTHING, Options, best_clip, divergences
from fewbit.calibrate.histogram import Histogram
from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerGroup, PerTensor
from fewbit.numbers.spec import QSpec

INT8, UINT8 = QSpec.parse("int8/tensor/sym"), QSpec.parse("uint8/tensor/asym")
COUNTS = st.lists(st.integers(0, 50).map(lambda n: max(0, n - 20)), min_size=24, max_size=24)


def literal_divergence(histogram: list[float], start: int, stop: int, levels: int) -> float:
    """P, Q and KL(P || Q) of one candidate, bin by bin."""
    inside = histogram[start:stop]
    if sum(inside) == 0:
        return math.inf
    p = list(inside)
    p[0] += sum(histogram[:start])
    p[-1] += sum(histogram[stop:])
    level_of = [j * levels // len(inside) for j in range(len(inside))]
    q = [0.0] * len(inside)
    for level in range(levels):
        bins = [j for j in range(len(inside)) if level_of[j] == level]
        filled = [j for j in bins if p[j] > 0]
        for j in filled:
            q[j] = sum(inside[k] for k in bins) / len(filled)
    filled = [j for j in range(len(p)) if p[j] > 0]
    p_sum, q_sum = sum(p), sum(q)
    smooth = [(1 - SMOOTHING) * q[j] / q_sum + SMOOTHING / len(filled) for j in filled]
    return sum(p[j] / p_sum * math.log(p[j] / p_sum / s) for j, s in zip(filled, smooth))


def literal_best_clip(histogram: list[float], levels: int) -> float:
    """All candidates one after the other, over bins from −max |x| to max |x|."""
    side = len(histogram) // 2
    held = [j for j, count in enumerate(histogram) if count]
    first, last = min(held[0], side), max(held[-1] + 1, side)
    histogram = list(histogram)
    histogram[side], histogram[side - 1] = histogram[side + 1], histogram[side - 2]
    best, clip = math.inf, 1.0
    for i in range(1, side + 1):
        start, stop = max(first, side - i), min(last, side + i)
        if stop - start < levels:
            continue
        divergence = literal_divergence(histogram, start, stop, levels)
        if divergence <= best + 1e-13:
            best, clip = min(best, divergence), min(1.0, (i + 0.5) / side)
    return clip


def stream(x: Tensor, spec: QSpec) -> Range:
    statistic = entropy.new_statistic(spec.granularity, Options())
    for piece in x.split(max(1, len(x) // 3)):
        statistic.update(piece)
    return entropy.solve(statistic, spec, Options())


def test_the_example_of_the_slides() -> None:
    p = [1.0, 0.0, 2.0, 3.0, 5.0, 3.0, 1.0, 7.0]
    q = [2.0, 0.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    expected = sum(a / 22 * math.log(a / b) for a, b in zip(p, q) if a)
    found = divergences(torch.tensor(p, dtype=torch.float64), torch.tensor([0]), torch.tensor([8]), 2)
    assert found.item() == pytest.approx(expected, rel=1e-3)  # but for the smoothing


@given(COUNTS, st.sampled_from([1, 2, 3, 4, 7, 8]))
def test_divergences_equal_the_literal_loop(counts: list[int], levels: int) -> None:
    counts[5] += 1
    histogram = torch.tensor(counts, dtype=torch.float64)
    windows = [(a, b) for a in range(24) for b in range(a + max(levels, 2), 25)]
    start, stop = torch.tensor(windows).unbind(1)
    found = divergences(histogram, start, stop, levels)
    expected = [literal_divergence([float(c) for c in counts], a, b, levels) for a, b in windows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(COUNTS, COUNTS, st.sampled_from([1, 2, 4, 8]))
def test_the_best_clip_equals_the_literal_search(below: list[int], above: list[int], levels: int) -> None:
    above[-1] += 1
    histogram = [float(c) for c in [*below, *above]]
    found = best_clip(torch.tensor(histogram, dtype=torch.float64), levels)
    assert found.item() == pytest.approx(literal_best_clip(histogram, levels))


@pytest.mark.parametrize("kind", ["normal", "laplace", "one-sided", "outliers", "sparse"])
def test_at_the_published_size(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=generator)
    x = {
        "normal": x,
        "laplace": x * torch.rand(20000, generator=generator).log().abs().sqrt(),
        "one-sided": x.relu(),
        "outliers": torch.cat([x, torch.tensor([60.0])]),
        "sparse": x[:100],
    }[kind]
    histogram = Histogram(PerTensor())
    histogram.update(x)
    row = histogram.coarse(BINS)[0]
    row[BINS:] += row[:BINS].flip(0)
    row[:BINS] = 0
    counts = row[BINS:].tolist()
    windows = [128, 129, 200, 511, 1024, 1500, 2047, 2048]
    found = divergences(row[BINS:], torch.zeros(8, dtype=torch.int64), torch.tensor(windows), 128)
    expected = [literal_divergence(counts, 0, i, 128) for i in windows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_no_clip_that_the_search_left_out_is_better() -> None:
    histogram = Histogram(PerTensor())
    histogram.update(torch.randn(20000, generator=torch.Generator().manual_seed(1)).abs() ** 1.7)
    row = histogram.coarse(BINS)[0]
    row[BINS] = row[BINS + 1]
    stops = torch.arange(128, BINS + 1)
    every = divergences(row[BINS:], torch.zeros_like(stops), stops, 128)
    clip = best_clip(histogram.coarse(BINS)[0], 128).item()
    assert 128 / BINS <= clip < 1
    assert every[round(clip * BINS - 0.5) - 128] == every.min()
    assert every[round(clip * BINS - 0.5) - 127 :].min() > every.min()  # of equals the largest


def test_outliers_are_clipped_and_the_body_is_kept() -> None:
    x = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(2)), torch.tensor([40.0, -35.0])])
    for spec in (INT8, UINT8):
        found = stream(x, spec)
        assert 3 < found.hi.item() < 8
        assert -8 < found.lo.item() < -3


def test_uniform_data_is_hardly_clipped() -> None:
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(3))
    assert stream(x, UINT8).hi.item() > 0.9


def test_exact_zeros_make_no_difference() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(4)).abs() + 0.01
    padded = torch.cat([x, torch.zeros(500_000)])
    assert stream(padded, UINT8).hi.item() == stream(x, UINT8).hi.item()


def test_all_negative_data_is_mirrored() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(5)).relu()
    x = torch.where(x > 0, (x * 1024).floor() / 1024 + 1 / 2048, x)  # off the edges of bins
    positive, negative = stream(x, UINT8), stream(-x, UINT8)
    assert (negative.lo.item(), negative.hi.item()) == (-positive.hi.item(), 0)


def test_one_sided_data_has_all_the_levels() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(6)).abs() ** 1.7
    histogram = Histogram(PerTensor())
    histogram.update(x)
    row = histogram.coarse(BINS)[0]
    amax = x.max().item()
    assert stream(x, UINT8).hi.item() == pytest.approx(best_clip(row, 256).item() * amax)
    assert stream(x, INT8).hi.item() == pytest.approx(best_clip(row, 128).item() * amax)
    assert stream(x, QSpec.parse("int4/tensor/sym")).hi.item() == pytest.approx(best_clip(row, 8).item() * amax)


def test_a_short_side_stays_whole() -> None:
    x = torch.nn.functional.silu(3 * torch.randn(100_000, generator=torch.Generator().manual_seed(7)))
    found = stream(x, UINT8)
    assert found.lo.item() == pytest.approx(x.min().item())
    assert found.hi.item() < x.max().item()


def test_more_levels_than_bins_clip_nothing() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(8))
    found = stream(x, QSpec.parse("int16/tensor/sym"))
    assert found.hi.item() == pytest.approx(x.abs().max().item())


def test_a_tensor_at_hand_is_solved_as_a_stream_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "_BLOCKS_AT_ONCE", 2)
    x = torch.randn(5, 2000, generator=torch.Generator().manual_seed(9)) ** 3
    found = entropy.solve_tensor(x, QSpec.parse("int8/channel/sym"), Options())
    for row, hi in zip(x, found.hi):
        assert hi == stream(row, INT8).hi


def test_what_it_cannot_serve_is_refused_by_name() -> None:
    with pytest.raises(FewbitError, match=r"conv1: a group of 32 values is too few .* use mse or minmax"):
        entropy.new_statistic(PerGroup(32), Options(), "conv1")
    with pytest.raises(FewbitError, match="a group of 32"):
        entropy.solve_tensor(torch.ones(64), QSpec.parse("int4/g32/sym"), Options())
    statistic = entropy.new_statistic(PerTensor(), Options(), "conv1")
    statistic.update(torch.ones(3))
    with pytest.raises(FewbitError, match=r"conv1: .*integer format, not fp8_e4m3"):
        entropy.solve(statistic, QSpec.parse("fp8_e4m3/tensor/sym"), Options())
