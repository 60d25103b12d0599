from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit import calibrate
from fewbit.calibrate import outlier
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

ASYM, SYM = QSpec.parse("uint8/tensor/asym"), QSpec.parse("int8/tensor/sym")


def noise(count: int = 50_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", [ASYM, SYM])
def test_data_without_outliers_keeps_its_range(spec: QSpec) -> None:
    x = noise()
    found, whole = calibrate.solve_tensor("outlier", x, spec), calibrate.solve_tensor("minmax", x, spec)
    assert torch.equal(found.hi, whole.hi)
    assert torch.equal(found.lo, whole.lo)


@pytest.mark.parametrize("spec", [ASYM, SYM])
@pytest.mark.parametrize("side", [1, -1])
def test_rare_values_far_out_are_left_outside(spec: QSpec, side: int) -> None:
    x = noise()
    most = float(x.abs().max())
    x[:3] = 60.0 * side
    found = calibrate.solve_tensor("outlier", x, spec)
    reach = float(found.hi if side > 0 or spec.symmetric else -found.lo)
    assert 3.5 < reach <= most + 0.02


@pytest.mark.parametrize("spec", [ASYM, SYM])
def test_many_values_far_out_are_a_tail(spec: QSpec) -> None:
    x = noise()
    x[:500] = torch.linspace(20, 60, 500)
    found = calibrate.solve_tensor("outlier", x, spec)
    assert 59 < float(found.hi) < 60  # but for the rarest
    assert float((x > found.hi).float().mean()) <= 1e-4


def test_the_zeros_of_relu_do_not_make_everything_an_outlier() -> None:
    x = noise().clamp(min=0)
    x[x < 1] = 0  # five sixths are zeros
    found = calibrate.solve_tensor("outlier", x, ASYM)
    assert float(found.hi) == float(x.max())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.sampled_from([ASYM, SYM]))
def test_at_most_the_rare_share_lies_outside(values: list[float], spec: QSpec) -> None:
    x = torch.tensor(values)
    options = outlier.Options(reach=0.0, rare=0.1)
    found = calibrate.solve_tensor("outlier", x, spec, options)
    slack = float(x.abs().max()) / 2048
    outside = (x > found.hi + slack) | (x < found.lo - slack)
    assert int(outside.sum()) <= 2 * 0.1 * len(values)


def test_options_out_of_range() -> None:
    with pytest.raises(FewbitError, match="reach is at least 0"):
        outlier.Options(reach=-1)
    with pytest.raises(FewbitError, match="rare"):
        outlier.Options(rare=1.0)
