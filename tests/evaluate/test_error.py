"""Errors as running sums: the same figures as NumPy on everything at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.evaluate.error import SignalNoise, SplitSums, cosine, error_split, sqnr, top1_agreement
from fewbit.numbers.affine import quantize, scale_and_zero_point


def batches(seed: int, count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, generator=generator) for _ in range(count)]


def test_sqnr_is_the_ratio_of_energies_in_decibels() -> None:
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(10 * math.log10(25 / 0.25))


def test_sqnr_of_equal_tensors_is_infinite_and_of_a_zero_reference_minus_infinite() -> None:
    x = torch.tensor([1.0, -2.0])
    assert sqnr(x, x.clone()) == math.inf
    assert sqnr(torch.zeros(2), x) == -math.inf


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), noise=st.floats(1e-4, 1.0))
def test_running_sqnr_equals_that_of_everything_at_once(seed: int, noise: float) -> None:
    references = batches(seed)
    measured = [x + noise * y for x, y in zip(references, batches(seed + 1))]
    running = SignalNoise()
    for x, y in zip(references, measured):
        running.add(x, y)
    assert running.sqnr == pytest.approx(sqnr(torch.cat(references), torch.cat(measured)), abs=1e-4)
    assert running.count == 4 * 35


def test_merged_sums_equal_one_sum() -> None:
    parts = [SignalNoise(), SignalNoise()]
    for part, x in zip(parts, batches(3, 2)):
        part.add(x, x + 0.1)
    both = parts[0].merge(parts[1])
    assert both.signal == parts[0].signal + parts[1].signal
    assert both.noise == parts[0].noise + parts[1].noise
    assert both.count == 70


def test_equal_zero_and_not_finite_sums() -> None:
    x = torch.ones(3)
    same, against_zero, broken = SignalNoise(), SignalNoise(), SignalNoise()
    same.add(x, x)
    against_zero.add(torch.zeros(3), x)
    broken.add(x, torch.tensor([1.0, math.nan, 1.0]))
    assert same.sqnr == math.inf
    assert against_zero.sqnr == -math.inf
    assert math.isnan(broken.sqnr)


def test_half_precision_is_measured_in_float32() -> None:
    x = torch.full((1000,), 300.0, dtype=torch.float16)  # 300² overflows float16
    running = SignalNoise()
    running.add(x, x - 1)
    assert running.sqnr == pytest.approx(20 * math.log10(300), abs=1e-6)


def test_split_parts_add_up_and_clipping_is_what_the_clamp_changed() -> None:
    x = torch.tensor([0.4, 0.6, 1.4, 5.0])
    scale = torch.tensor(1.0)
    codes = quantize(x, "int2/tensor/sym", scale=scale)  # −2 … 1
    sums = SplitSums()
    sums.add(x, codes.dequantize(), scale, -2 * scale, 1 * scale)
    # 1.4 rounds to 1 without the clamp, so it is rounding; 5.0 is clipped to 1
    assert sums.split.rounding_mse == pytest.approx((0.16 + 0.16 + 0.16) / 4)
    assert sums.split.clipping_mse == pytest.approx(16 / 4)
    assert sums.split.clipped_fraction == 0.25
    assert sums.split.mse == pytest.approx(float((x - codes.dequantize()).square().mean()))
    assert sums.power == pytest.approx(float(x.square().mean()))


def test_split_of_batches_equals_the_split_of_all() -> None:
    parts = batches(5)
    whole = torch.cat(parts)
    step, lo, hi = torch.tensor(0.25), torch.tensor(-1.0), torch.tensor(0.75)
    running, once = SplitSums(), SplitSums()
    for x in parts:
        running.add(x, (x / 0.25).round().clamp(-4, 3) * 0.25, step, lo, hi)
    once.add(whole, (whole / 0.25).round().clamp(-4, 3) * 0.25, step, lo, hi)
    assert running.split.rounding_mse == pytest.approx(once.split.rounding_mse)
    assert running.split.clipping_mse == pytest.approx(once.split.clipping_mse)
    assert running.theory_ratio == pytest.approx(once.theory_ratio)
    assert error_split(whole, (whole / 0.25).round().clamp(-4, 3) * 0.25, lo - 0.125, hi + 0.125) == once.split


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_uniform_data_measures_the_theory_clipped_or_not(clip: float) -> None:
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    scale, _ = scale_and_zero_point(torch.tensor(-clip), torch.tensor(clip), "int6/tensor/sym")
    measured = quantize(x, "int6/tensor/sym", scale=scale).dequantize()
    sums = SplitSums()
    sums.add(x, measured, scale, -32 * scale, 31 * scale)
    assert sums.theory_ratio == pytest.approx(1, abs=0.02)
    assert (sums.split.clipped_fraction > 0.5) == (clip < 1)


def test_theory_is_the_mean_over_channels() -> None:
    x = torch.rand(2, 50_000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [100.0]])
    scale, _ = scale_and_zero_point(-x.amax(1), x.amax(1), "int4/channel/sym")
    measured = quantize(x, "int4/channel/sym", scale=scale).dequantize()
    sums = SplitSums()
    column = scale[:, None]
    sums.add(x, measured, column, -8 * column, 7 * column)
    assert sums.theory / sums.count == pytest.approx(float((scale.double() ** 2).mean() / 12))
    assert sums.theory_ratio == pytest.approx(1, abs=0.05)


def test_no_ratio_without_a_step_or_without_data() -> None:
    assert SplitSums().theory_ratio is None
    sums = SplitSums()
    sums.add(torch.ones(3), torch.ones(3), torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(1.0))
    assert sums.theory_ratio is None


def test_cosine_is_the_mean_over_samples() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    assert cosine(x, y) == pytest.approx((1 / math.sqrt(2) + 1) / 2)
    assert cosine(x, -x) == pytest.approx(-1)


def test_cosine_of_more_and_fewer_dimensions() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    y = x + 0.5
    a, b = x.numpy().reshape(3, -1), y.numpy().reshape(3, -1)
    expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert cosine(x, y) == pytest.approx(float(expected), abs=1e-6)
    assert cosine(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])) == pytest.approx(1)
    assert cosine(torch.tensor(2.0), torch.tensor(-3.0)) == pytest.approx(-1)


def test_cosine_of_zero_vectors() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == 0
    assert cosine(one, zero) == 0


def test_top1_counts_rows_of_any_rank() -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    assert top1_agreement(x, y) == 0.75
    assert top1_agreement(x.reshape(2, 2, 2), y.reshape(2, 2, 2)) == 0.75
