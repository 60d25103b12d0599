"""Range: what the two symmetries make of an interval, and what no range may be."""

from __future__ import annotations

import pytest
import torch

from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

SYM, ASYM = QSpec.parse("int8/channel/sym"), QSpec.parse("uint8/channel/asym")


def test_symmetric_is_mirrored() -> None:
    found = Range.of(torch.tensor([-3.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, -1.0]), SYM)
    assert found.hi.tolist() == [3, 2, 2]
    assert found.lo.tolist() == [-3, -2, -2]


def test_asymmetric_holds_zero() -> None:
    found = Range.of(torch.tensor([-3.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, -1.0]), ASYM)
    assert found.lo.tolist() == [-3, 0, -2]
    assert found.hi.tolist() == [1, 2, 0]


def test_the_result_has_float32_and_the_shape_asked_for() -> None:
    found = Range.of(torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64), ASYM, (2, 3))
    assert found.lo.shape == found.hi.shape == (2, 3)
    assert found.lo.dtype == found.hi.dtype == torch.float32


@pytest.mark.parametrize(
    ("lo", "hi"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.tensor([1.0]), torch.tensor([0.0])),
        (torch.tensor([float("nan")]), torch.tensor([0.0])),
        (torch.tensor([0.0]), torch.tensor([float("inf")])),
    ],
)
def test_what_is_no_range_is_refused(lo: torch.Tensor, hi: torch.Tensor) -> None:
    with pytest.raises(FewbitError):
        Range(lo, hi)
