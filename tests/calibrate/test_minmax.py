"""Min-max is the range of the data and nothing else."""

from __future__ import annotations

import pytest
import torch

from fewbit.calibrate import minmax
from fewbit.calibrate.histogram import Histogram
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec

X = torch.tensor([[-1.0, 4.0, 2.0], [3.0, 5.0, 1.0], [-2.0, -7.0, -0.5]])


def test_asymmetric_range_of_each_channel() -> None:
    spec = QSpec.parse("uint8/channel/asym")
    statistic = minmax.new_statistic(spec.granularity, minmax.Options())
    statistic.update(X)
    found = minmax.solve(statistic, spec, minmax.Options())
    assert found.lo.tolist() == [-1, 0, -7]
    assert found.hi.tolist() == [4, 5, 0]


def test_symmetric_range_of_each_column() -> None:
    spec = QSpec.parse("int8/channel1/sym")
    statistic = minmax.new_statistic(spec.granularity, minmax.Options())
    for row in X:
        statistic.update(row.unsqueeze(0))
    found = minmax.solve(statistic, spec, minmax.Options())
    assert found.hi.tolist() == [3, 7, 2]
    assert found.lo.tolist() == [-3, -7, -2]


def test_the_first_batch_may_hold_the_extremes() -> None:
    spec = QSpec.parse("uint8/tensor/asym")
    statistic = minmax.new_statistic(spec.granularity, minmax.Options())
    for batch in ([-9.0, 8.0], [-1.0, 1.0], [-2.0, 0.5]):
        statistic.update(torch.tensor(batch))
    found = minmax.solve(statistic, spec, minmax.Options())
    assert (found.lo.item(), found.hi.item()) == (-9, 8)


def test_any_statistic_knows_the_range() -> None:
    histogram = Histogram(PerTensor())
    histogram.update(X)
    found = minmax.solve(histogram, QSpec.parse("uint8/tensor/asym"), minmax.Options())
    assert (found.lo.item(), found.hi.item()) == (-7, 5)


def test_no_data_is_an_error_that_names_the_tensor() -> None:
    statistic = minmax.new_statistic(PerTensor(), minmax.Options(), "features.0")
    with pytest.raises(FewbitError, match=r"features\.0 saw no calibration data"):
        minmax.solve(statistic, QSpec.parse("int8/tensor/sym"), minmax.Options())
