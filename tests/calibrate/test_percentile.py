"""Percentiles against numpy.percentile: equal for data at hand, within a bin from a stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.calibrate import percentile
from fewbit.calibrate.percentile import Options
from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerGroup
from fewbit.numbers.spec import QSpec

SYM, ASYM = QSpec.parse("int8/tensor/sym"), QSpec.parse("uint8/tensor/asym")
PERCENTILES = [0.5, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0]
DATA = {
    "normal": lambda g: torch.randn(5000, generator=g),
    "one-sided": lambda g: torch.randn(5000, generator=g).relu(),
    "negative": lambda g: -torch.rand(777, generator=g) - 2,
    "positive": lambda g: torch.rand(777, generator=g) + 2,
    "outliers": lambda g: torch.cat([torch.randn(3000, generator=g), torch.tensor([500.0, -900.0])]),
    "few": lambda g: torch.tensor([1.0, -2.0, 3.0]),
    "one": lambda g: torch.tensor([-0.3]),
    "equal": lambda g: torch.full((100,), 1.7),
}


def expected(values: np.ndarray, p: float, symmetric: bool) -> tuple[float, float]:
    """The rule of the module's first lines, with NumPy."""
    values = values.astype(np.float64)
    if symmetric:
        clip = float(np.percentile(np.abs(values), p))
        return -clip, clip
    if values.min() >= 0:
        return 0.0, float(np.percentile(values, p))
    if values.max() <= 0:
        return float(np.percentile(values, 100 - p)), 0.0
    outside = (100 - p) / 2
    lo, hi = np.percentile(values, [outside, 100 - outside])
    return min(float(lo), 0.0), max(float(hi), 0.0)


def from_stream(x: Tensor, spec: QSpec, options: Options, pieces: int = 3) -> tuple[Range, Tensor]:
    statistic = percentile.new_statistic(spec.granularity, options)
    for piece in x.tensor_split(min(pieces, len(x))):
        statistic.update(piece)
    return percentile.solve(statistic, spec, options), statistic.width


@pytest.mark.parametrize("p", PERCENTILES)
@pytest.mark.parametrize("spec", [SYM, ASYM], ids=str)
@pytest.mark.parametrize("kind", DATA)
def test_equals_numpy(kind: str, spec: QSpec, p: float) -> None:
    x = DATA[kind](torch.Generator().manual_seed(0))
    lo, hi = expected(x.numpy(), p, spec.symmetric)
    at_hand = percentile.solve_tensor(x, spec, Options(p))
    assert at_hand.lo.item() == pytest.approx(lo, rel=1e-6, abs=1e-7)
    assert at_hand.hi.item() == pytest.approx(hi, rel=1e-6, abs=1e-7)
    streamed, width = from_stream(x, spec, Options(p))
    slack = width.item() * (1 + 1e-6)
    assert streamed.lo.item() == pytest.approx(lo, abs=slack)
    assert streamed.hi.item() == pytest.approx(hi, abs=slack)
    assert slack <= x.abs().max().item() / 4095


@given(
    st.lists(st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=50),
    st.floats(0.1, 100),
    st.booleans(),
)
def test_a_stream_is_within_a_bin_of_numpy(values: list[float], p: float, symmetric: bool) -> None:
    spec = SYM if symmetric else ASYM
    lo, hi = expected(np.array(values), p, symmetric)
    streamed, width = from_stream(torch.tensor(values), spec, Options(p))
    slack = width.item() + 1e-4
    assert streamed.lo.item() == pytest.approx(lo, abs=slack)
    assert streamed.hi.item() == pytest.approx(hi, abs=slack)


def test_a_coarse_histogram_is_within_its_own_bin() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    streamed, width = from_stream(x, SYM, Options(99.0, bins=64))
    assert width.item() >= x.abs().max() / 32
    assert streamed.hi.item() == pytest.approx(expected(x.numpy(), 99.0, True)[1], abs=width.item())


@pytest.mark.parametrize("spec", ["int8/channel/sym", "uint8/channel1/asym", "int4/g5/asym", "int8/token/sym"])
def test_blocks_are_solved_each_by_itself(spec: str) -> None:
    parsed = QSpec.parse(spec)
    x = torch.randn(3, 13, generator=torch.Generator().manual_seed(2)) + torch.tensor([[0.0], [9.0], [-9.0]])
    at_hand = percentile.solve_tensor(x, parsed, Options(90.0))
    statistic = percentile.new_statistic(parsed.granularity, Options(90.0))
    statistic.update(x)
    streamed = percentile.solve(statistic, parsed, Options(90.0))
    assert at_hand.lo.shape == streamed.lo.shape == parsed.granularity.scale_shape((3, 13))
    if isinstance(parsed.granularity, PerGroup):
        rows = [row[i : i + 5].numpy() for row in x for i in (0, 5, 10)]
    else:
        rows = [row.numpy() for row in parsed.granularity.to_blocks(x)]
    for i, row in enumerate(rows):
        lo, hi = expected(row, 90.0, parsed.symmetric)
        assert at_hand.lo.flatten()[i].item() == pytest.approx(lo, rel=1e-5)
        assert at_hand.hi.flatten()[i].item() == pytest.approx(hi, rel=1e-5)
        assert streamed.hi.flatten()[i].item() == pytest.approx(hi, abs=statistic.width[i].item())


@pytest.mark.parametrize("spec", [SYM, ASYM], ids=str)
@pytest.mark.parametrize("kind", DATA)
def test_all_of_it_is_min_max_exactly(kind: str, spec: QSpec) -> None:
    x = DATA[kind](torch.Generator().manual_seed(0))
    plain = Range.of(x.min(), x.max(), spec)
    for found in (from_stream(x, spec, Options(100.0))[0], percentile.solve_tensor(x, spec, Options(100.0))):
        assert (found.lo, found.hi) == (plain.lo, plain.hi)


def test_half_the_default_is_lost_at_either_end() -> None:
    x = torch.arange(-1000.0, 1001.0)
    found = percentile.solve_tensor(x, ASYM, Options())
    assert found.hi.item() == pytest.approx(999)
    assert found.lo.item() == pytest.approx(-999)
    assert percentile.solve_tensor(x.abs(), ASYM, Options()).hi.item() == pytest.approx(999)


def test_many_rows_are_sorted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(10, 30, generator=torch.Generator().manual_seed(3))
    spec = QSpec.parse("int8/channel/sym")
    whole = percentile.solve_tensor(x, spec, Options(95.0))
    monkeypatch.setattr(percentile, "_SORTED_AT_ONCE", 70)
    pieces = percentile.solve_tensor(x, spec, Options(95.0))
    assert torch.equal(whole.hi, pieces.hi)


@pytest.mark.parametrize("p", [0.0, -1.0, 100.1, float("nan")])
def test_what_is_no_percentile_is_refused(p: float) -> None:
    with pytest.raises(FewbitError, match="percentile"):
        Options(p)
