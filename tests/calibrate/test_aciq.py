"""ACIQ against samples of the two distributions it is made for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewbit.calibrate import aciq
from fewbit.calibrate.aciq import Options
from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec
from fewbit.numbers.theory import gaussian_clip, laplace_clip


def gaussian(n: int = 400_000) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def laplace(n: int = 400_000) -> Tensor:
    """b = 1."""
    generator = torch.Generator().manual_seed(1)
    return -torch.rand(n, generator=generator).log() * torch.randint(0, 2, (n,), generator=generator).mul(2).sub(1)


def solve(x: Tensor, spec: str) -> Range:
    parsed = QSpec.parse(spec)
    statistic = aciq.new_statistic(parsed.granularity, Options())
    for piece in x.split(100_000):
        statistic.update(piece)
    return aciq.solve(statistic, parsed, Options())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_gaussian(bits: int, scale: float) -> None:
    expected = gaussian_clip(bits) * scale
    assert solve(scale * gaussian(), f"int{bits}/tensor/sym").hi.item() == pytest.approx(expected, rel=0.01)
    two_sided = solve(scale * gaussian(), f"uint{bits}/tensor/asym")
    assert two_sided.hi.item() == pytest.approx(expected, rel=0.01)
    assert two_sided.lo.item() == pytest.approx(-expected, rel=0.01)


@pytest.mark.parametrize("bits", range(2, 9))
def test_laplace(bits: int) -> None:
    assert solve(laplace(), f"int{bits}/tensor/sym").hi.item() == pytest.approx(laplace_clip(bits), rel=0.01)
    assert solve(laplace(), f"uint{bits}/tensor/asym").lo.item() == pytest.approx(-laplace_clip(bits), rel=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_rectified_data_has_the_clip_of_one_more_bit(bits: int, sign: int) -> None:
    for x, clip in ((gaussian(), gaussian_clip(bits + 1)), (laplace(), laplace_clip(bits + 1))):
        found = solve(sign * x.relu(), f"uint{bits}/tensor/asym")
        ends = (found.hi.item(), found.lo.item()) if sign > 0 else (-found.lo.item(), -found.hi.item())
        assert ends == (pytest.approx(clip, rel=0.01), 0)


def test_rectified_data_under_a_symmetric_spec_keeps_the_clip_of_its_bits() -> None:
    assert solve(gaussian().relu(), "int4/tensor/sym").hi.item() == pytest.approx(gaussian_clip(4), rel=0.01)


def test_zeros_make_no_difference() -> None:
    x = gaussian(50_000)
    padded = torch.cat([x, torch.zeros(200_000)])
    assert solve(padded, "int4/tensor/sym").hi.item() == pytest.approx(solve(x, "int4/tensor/sym").hi.item())


def test_a_range_around_the_mean() -> None:
    found = solve(gaussian() + 1.5, "uint4/tensor/asym")
    assert found.hi.item() == pytest.approx(1.5 + gaussian_clip(4), rel=0.01)
    assert found.lo.item() == pytest.approx(1.5 - gaussian_clip(4), rel=0.02)
    shifted = solve(laplace() - 1.0, "uint4/tensor/asym")
    assert shifted.lo.item() == pytest.approx(-1 - laplace_clip(4), rel=0.01)


def test_far_from_zero_the_range_still_holds_it() -> None:
    found = solve(gaussian() + 50, "uint8/tensor/asym")
    assert found.lo.item() == 0
    assert 50 < found.hi.item() <= 55.1


def test_the_range_is_never_wider_than_the_data() -> None:
    x = torch.tensor([-1.0, 1.0, 0.5, -0.25])
    for spec in ("int8/tensor/sym", "uint8/tensor/asym"):
        found = solve(x, spec)
        assert found.hi.item() <= 1
        assert found.lo.item() >= -1


def test_each_channel_by_its_own_distribution() -> None:
    found = solve(torch.stack([gaussian(90_000), 3 * laplace(90_000), torch.zeros(90_000)]), "int4/channel/sym")
    assert found.hi.tolist() == [
        pytest.approx(gaussian_clip(4), rel=0.02),
        pytest.approx(3 * laplace_clip(4), rel=0.02),
        0,
    ]


def test_which_distribution_fits() -> None:
    one = torch.ones(2, dtype=torch.float64)
    magnitude = torch.tensor([math.sqrt(2 / math.pi), 1 / math.sqrt(2)], dtype=torch.float64)
    assert aciq._is_gaussian(magnitude, 0 * one, one).tolist() == [True, False]


def test_formats_without_even_levels_are_refused() -> None:
    statistic = aciq.new_statistic(PerTensor(), Options(), "fc")
    statistic.update(torch.ones(3))
    with pytest.raises(FewbitError, match=r"fc: .*integer format, not nf4"):
        aciq.solve(statistic, QSpec.parse("nf4/tensor/sym"), Options())
