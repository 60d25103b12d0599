"""The MSE search against brute force, and its promise to be no worse than min-max."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewbit.calibrate import minmax, mse
from fewbit.calibrate.histogram import Histogram
from fewbit.calibrate.mse import Options, squared_errors
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import dense_parts
from fewbit.numbers.affine import dequantize, quantize, scale_and_zero_point
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec
from fewbit.numbers.theory import gaussian_clip

FORMATS = ["int8", "uint8", "int4", "uint4", "int2", "int1", "int16", "fp8_e4m3", "fp4_e2m1", "nf4"]


def error_of(x: Tensor, found: Range, spec: QSpec) -> Tensor:
    """Squared error of each block, float64, by the library's own quantize and dequantize."""
    scale, zero_point = scale_and_zero_point(found.lo, found.hi, spec)
    squares = (dequantize(quantize(x, spec, scale=scale, zero_point=zero_point)).double() - x.double()).square()
    blocks = torch.zeros(found.lo.numel(), dtype=torch.float64)
    for rows, values in dense_parts(squares, spec.granularity):
        blocks[rows] = values.sum(1)
    return blocks


def stream(x: Tensor, spec: QSpec) -> tuple[Range, Histogram]:
    statistic = mse.new_statistic(spec.granularity, Options())
    statistic.update(x)
    return mse.solve(statistic, spec, Options()), statistic


def model_error(statistic: Histogram, found: Range, spec: QSpec) -> float:
    """The stream's own objective: every value at the centre of its bin."""
    values, counts = statistic.centres(0)
    return squared_errors(
        values.float().unsqueeze(0), found.lo.reshape(1), found.hi.reshape(1), spec, counts.double()
    ).item()


def heavy(seed: int, *shape: int) -> Tensor:
    """Tails much longer than a Gaussian's."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x * x.abs() ** 1.5


@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_squared_errors_are_those_of_quantizing(fmt: str, symmetry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mse, "_AT_ONCE", 16)  # many small tiles
    spec = QSpec.parse(f"{fmt}/channel/{symmetry}")
    x = heavy(0, 5, 40)
    limits = Range.of(0.6 * x.amin(1), 0.7 * x.amax(1), spec)
    found = squared_errors(x, limits.lo, limits.hi, spec)
    torch.testing.assert_close(found, error_of(x, limits, spec), rtol=1e-5, atol=0.0)
    weights = torch.arange(40.0, dtype=torch.float64)
    weighted = squared_errors(x, limits.lo, limits.hi, spec, weights)
    repeated = squared_errors(x.repeat_interleave(weights.long(), dim=1), limits.lo, limits.hi, spec)
    torch.testing.assert_close(weighted, repeated)


def test_a_range_without_a_normal_scale_has_no_finite_error() -> None:
    ends = torch.tensor([1e-39, 1.0])
    errors = squared_errors(torch.zeros(2, 4), -ends, ends, QSpec.parse("int8/channel/sym"))
    assert errors.tolist() == [float("inf"), 0]


@settings(max_examples=40)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.sampled_from(FORMATS),
    st.sampled_from(["sym", "asym"]),
)
def test_never_worse_than_minmax(values: list[float], fmt: str, symmetry: str) -> None:
    spec = QSpec.parse(f"{fmt}/tensor/{symmetry}")
    x = torch.tensor([v if abs(v) > 1e-3 else 0.0 for v in values])
    streamed, statistic = stream(x, spec)
    plain = minmax.solve(statistic, spec, minmax.Options())
    assert model_error(statistic, streamed, spec) <= model_error(statistic, plain, spec)
    at_hand = mse.solve_tensor(x, spec, Options())
    assert error_of(x, at_hand, spec) <= error_of(x, plain, spec) * (1 + 1e-5) + 1e-12
    for found in (streamed, at_hand):
        assert plain.lo <= found.lo <= found.hi <= plain.hi


@pytest.mark.parametrize("spec", [f"{f}/channel/{s}" for f in FORMATS for s in ("sym", "asym")])
def test_clipping_pays_with_heavy_tails(spec: str) -> None:
    parsed = QSpec.parse(spec)
    x = heavy(1, 4, 3000)
    base = Range.of(x.amin(1), x.amax(1), parsed)
    found = mse.solve_tensor(x, parsed, Options())
    better, plain = error_of(x, found, parsed), error_of(x, base, parsed)
    assert (better <= plain * (1 + 1e-5)).all()
    if spec in ("int4/channel/sym", "uint4/channel/asym", "int2/channel/asym", "nf4/channel/sym"):
        assert better.sum() < 0.75 * plain.sum()


@pytest.mark.parametrize("fmt", ["int8", "int4", "int3", "fp4_e2m1", "nf4"])
def test_symmetric_is_close_to_brute_force(fmt: str) -> None:
    spec = QSpec.parse(f"{fmt}/tensor/sym")
    x = heavy(2, 5000)
    clips = torch.linspace(0.005, 1, 200) * x.abs().max()
    best = squared_errors(x.expand(200, -1), -clips, clips, spec).min()
    for found in (stream(x, spec)[0], mse.solve_tensor(x, spec, Options())):
        assert error_of(x, found, spec).item() <= 1.02 * best.item()


@pytest.mark.parametrize("spec", ["uint8/tensor/asym", "uint4/tensor/asym", "int3/tensor/asym"])
def test_asymmetric_is_close_to_brute_force(spec: str) -> None:
    parsed = QSpec.parse(spec)
    x = torch.cat([heavy(3, 2000).abs(), -0.3 * torch.rand(700, generator=torch.Generator().manual_seed(0))])
    x[0] = -9.0  # an outlier on the short side
    fractions = torch.cartesian_prod(torch.linspace(0.03, 1, 33), torch.linspace(0.03, 1, 33))
    lo, hi = fractions[:, 0] * x.min(), fractions[:, 1] * x.max()
    best = squared_errors(x.expand(len(fractions), -1), lo, hi, parsed).min()
    assert error_of(x, stream(x, parsed)[0], parsed).item() <= 1.05 * best.item()
    assert error_of(x, mse.solve_tensor(x, parsed, Options()), parsed).item() <= 1.10 * best.item()


def test_both_ends_move_by_themselves() -> None:
    x = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(4)).abs(), torch.tensor([-30.0])])
    spec = QSpec.parse("uint4/tensor/asym")
    for found in (stream(x, spec)[0], mse.solve_tensor(x, spec, Options())):
        assert found.lo.item() > -15  # clipped
        assert found.hi.item() > 2  # kept


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_gaussian_clip_costs_what_the_theory_says(bits: int) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(5))
    spec = QSpec.parse(f"uint{bits}/tensor/asym")
    alpha = torch.tensor(gaussian_clip(bits))
    theory = error_of(x, Range.of(-alpha, alpha, spec), spec).item()
    found, _ = stream(x, spec)
    assert error_of(x, found, spec).item() <= 1.02 * theory
    assert found.hi.item() - found.lo.item() == pytest.approx(2 * alpha.item(), rel=0.15)


def test_groups_with_a_ragged_tail() -> None:
    spec = QSpec.parse("int4/g16/asym")
    x = heavy(6, 3, 40) + 0.5
    found = mse.solve_tensor(x, spec, Options())
    assert found.lo.shape == (3, 3)
    tail = mse.solve_tensor(x[:, 32:].contiguous(), QSpec.parse("int4/channel/asym"), Options())
    assert torch.equal(found.hi[:, 2], tail.hi)
    streamed, _ = stream(x, spec)
    assert streamed.lo.shape == (3, 3)
    assert (error_of(x, found, spec) <= error_of(x, Range.of(*_extremes(x, 16), spec), spec) * (1 + 1e-5)).all()


def _extremes(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    groups = [part for row in x for part in row.split(size)]
    shape = (len(x), -1)
    low = torch.stack([g.min() for g in groups]).reshape(shape)
    return low, torch.stack([g.max() for g in groups]).reshape(shape)


@pytest.mark.parametrize("spec", ["int8/channel/sym", "uint8/channel/asym", "nf4/channel/sym", "fp8_e4m3/channel/asym"])
def test_blocks_that_have_no_scale_keep_their_range(spec: str) -> None:
    parsed = QSpec.parse(spec)
    x = torch.stack([torch.zeros(50), torch.full((50,), 1e-45), heavy(7, 50), torch.full((50,), -1e-41)])
    for found in (stream(x, parsed)[0], mse.solve_tensor(x, parsed, Options())):
        base = Range.of(x.amin(1), x.amax(1), parsed)
        for row in (0, 1, 3):
            assert found.lo[row] == base.lo[row]
            assert found.hi[row] == base.hi[row]
        assert 0 < found.hi[2] <= base.hi[2]


def test_a_small_range_may_shrink_only_as_far_as_its_scale_is_normal() -> None:
    x = heavy(8, 3000)
    x = x / x.abs().max() * 127 * 2.0**-125  # half of it would have a subnormal scale
    for found in (
        stream(x, QSpec.parse("int8/tensor/sym"))[0],
        mse.solve_tensor(x, QSpec.parse("int8/tensor/sym"), Options()),
    ):
        scale_and_zero_point(found.lo, found.hi, QSpec.parse("int8/tensor/sym"))
        assert found.hi.item() >= 126.9 * 2.0**-126


def test_a_huge_range_is_searched_without_overflow() -> None:
    x = heavy(9, 2000)
    x = x / x.abs().max() * 3e38
    for spec in (QSpec.parse("int4/tensor/sym"), QSpec.parse("uint4/tensor/asym")):
        for found in (stream(x, spec)[0], mse.solve_tensor(x, spec, Options())):
            assert 0 < found.hi.item() < 2.9e38


def test_a_stream_does_as_well_as_the_data_itself() -> None:
    x = torch.nn.functional.silu(3 * torch.randn(20_000, generator=torch.Generator().manual_seed(10)))
    for spec in (
        QSpec.parse("uint8/tensor/asym"),
        QSpec.parse("int8/tensor/sym"),
        QSpec.parse("fp8_e4m3/tensor/sym"),
    ):
        streamed, at_hand = stream(x, spec)[0], mse.solve_tensor(x, spec, Options())
        assert error_of(x, streamed, spec).item() <= 1.03 * error_of(x, at_hand, spec).item()


def test_equal_candidates_clip_less() -> None:
    x = torch.tensor([-1.0, 1.0])  # a code at every fraction of the range: all errors are the same for one bit
    assert stream(x, QSpec.parse("int8/tensor/sym"))[0].hi.item() == 1
    assert mse.solve_tensor(x, QSpec.parse("int8/tensor/sym"), Options()).hi.item() == 1


def test_the_histogram_is_shared_with_the_other_calibrators() -> None:
    assert mse.statistic_key(Options()) == ("histogram", 16384)
    assert mse.new_statistic(PerTensor(), Options(256)).bins == 256
