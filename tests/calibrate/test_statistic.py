"""The frame of all statistics, through the two simplest of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from fewbit.calibrate.histogram import Histogram
from fewbit.calibrate.minmax import MinMax
from fewbit.calibrate.statistic import checked, dense_parts, extremes, tiles
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken

GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerGroup(4),
    PerGroup(3),
    PerGroup(16),
    PerToken(),
]


def rows_of(x: Tensor, granularity: Granularity) -> list[list[float]]:
    """The values of each block in plain Python, padding apart."""
    if isinstance(granularity, PerGroup):
        return [
            row[i : i + granularity.size].tolist()
            for row in x.reshape(-1, x.shape[-1])
            for i in range(0, x.shape[-1], granularity.size)
        ]
    return [row.tolist() for row in granularity.to_blocks(x)]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_dense_parts_are_the_blocks_without_padding(granularity: Granularity) -> None:
    x = torch.arange(1.0, 2 * 3 * 10 + 1).reshape(2, 3, 10)
    expected = rows_of(x, granularity)
    found: dict[int, list[float]] = {}
    for rows, values in dense_parts(x, granularity):
        assert values.is_contiguous()
        index = torch.arange(len(expected))[rows].tolist()
        assert len(index) == len(values)
        found |= dict(zip(index, values.tolist()))
    assert [found[i] for i in range(len(expected))] == expected


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_extremes_of_each_block_are_exact(granularity: Granularity) -> None:
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)).abs() + 1  # a padded 0 would be the least
    statistic = MinMax(granularity)
    statistic.update(x)
    expected = rows_of(x, granularity)
    assert statistic.low.tolist() == [min(row) for row in expected]
    assert statistic.high.tolist() == [max(row) for row in expected]
    assert statistic.scale_shape == granularity.scale_shape((2, 3, 10))
    assert statistic.count == x.numel()


@pytest.mark.parametrize(("shape", "values"), [((3, 10), 4), ((7, 3), 6), ((5, 4), 100), ((1, 9), 9), ((4, 1), 1)])
def test_tiles_cover_a_matrix_once(shape: tuple[int, int], values: int) -> None:
    seen = torch.zeros(shape)
    for rows, columns in tiles(seen, values):
        assert 0 < seen[rows, columns].numel() <= values
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_checked_refuses_what_cannot_be_calibrated_on() -> None:
    with pytest.raises(FewbitError, match=r"layer\.input is empty"):
        checked(torch.empty(0, 3), "layer.input")
    with pytest.raises(FewbitError, match=r"layer\.input has dtype torch\.int64"):
        checked(torch.arange(3), "layer.input")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_checked_keeps_what_the_kernels_read(dtype: torch.dtype) -> None:
    assert checked(torch.ones(2, dtype=dtype), "x").dtype == dtype


def test_checked_narrows_and_detaches() -> None:
    x = checked(torch.ones(2, dtype=torch.float64, requires_grad=True), "x")
    assert x.dtype == torch.float32
    assert not x.requires_grad


@pytest.mark.parametrize(("bad", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "inf")])
def test_extremes_name_the_tensor_that_is_not_finite(bad: float, kind: str) -> None:
    with pytest.raises(FewbitError, match=rf"conv1 holds {kind}"):
        extremes(torch.tensor([[1.0, bad]]), "conv1")


def test_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(FewbitError, match="infinity"):
        MinMax(PerTensor()).update(torch.tensor([1e300], dtype=torch.float64))


def test_a_refused_batch_leaves_no_trace() -> None:
    statistic = Histogram(PerGroup(2), 64)
    statistic.update(torch.tensor([1.0, 2.0, 3.0]))
    before = copy.deepcopy(statistic)
    with pytest.raises(FewbitError):
        statistic.update(torch.tensor([100.0, 2.0, float("nan")]))
    assert statistic.count == before.count
    for field in ("low", "high", "counts", "exponent"):
        assert torch.equal(getattr(statistic, field), getattr(before, field))


def test_blocks_may_not_change_between_batches() -> None:
    statistic = MinMax(PerToken(), "tokens")
    statistic.update(torch.ones(2, 3))
    statistic.update(torch.ones(2, 5))  # the same two rows
    with pytest.raises(FewbitError, match=r"tokens has blocks \(4,\) under token but \(2,\) before"):
        statistic.update(torch.ones(4, 3))


def test_merging_needs_the_same_blocks_kind_and_settings() -> None:
    a, b = MinMax(PerToken()), MinMax(PerToken())
    a.update(torch.ones(2, 3))
    b.update(torch.ones(3, 3))
    with pytest.raises(FewbitError, match="blocks"):
        a.merge(b)
    with pytest.raises(FewbitError, match="different settings"):
        a.merge(MinMax(PerTensor()))
    with pytest.raises(FewbitError, match="different settings"):
        a.merge(Histogram(PerToken()))  # type: ignore[arg-type]


def test_an_empty_statistic_is_the_identity_of_merge_and_has_nothing_to_tell() -> None:
    empty, full = MinMax(PerTensor(), "conv1"), MinMax(PerTensor())
    full.update(torch.tensor([-1.0, 2.0]))
    for merged in (empty.merge(full), full.merge(empty)):
        assert (merged.low.item(), merged.high.item(), merged.count) == (-1, 2, 2)
        assert merged is not full
    assert empty.merge(empty).count == 0
    with pytest.raises(FewbitError, match="conv1 saw no calibration data"):
        empty.seen()


def test_merge_changes_neither_side() -> None:
    a, b = Histogram(PerTensor(), 64), Histogram(PerTensor(), 64)
    a.update(torch.tensor([1.0]))
    b.update(torch.tensor([-70.0, 3.0]))
    before = copy.deepcopy(a), copy.deepcopy(b)
    merged = a.merge(b)
    merged.update(torch.tensor([1e6]))
    for now, then in zip((a, b), before):
        assert now.count == then.count
        for field in ("low", "high", "counts", "exponent"):
            assert torch.equal(getattr(now, field), getattr(then, field))


def test_amax_is_the_largest_magnitude() -> None:
    statistic = MinMax(PerChannel(0))
    statistic.update(torch.tensor([[-3.0, 1.0], [-1.0, 2.0]]))
    assert statistic.amax.tolist() == [3, 2]
