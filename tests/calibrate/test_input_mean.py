"""Mean inputs: streaming, mergeable, and refused when empty. (Their use is tested with the bias correction.)"""

from __future__ import annotations

import pytest
import torch

from fewbit.calibrate.input_mean import InputMean
from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry


def test_linear_means_are_means():
    x = torch.randn(6, 3, 5)
    statistic = InputMean(None)
    for part in x.split(2):
        statistic.update(part)
    assert torch.allclose(statistic.mean(), x.double().reshape(-1, 5).mean(0, keepdim=True))


@pytest.mark.parametrize("geometry", [None, Geometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2)])
def test_merging_is_the_statistic_of_both(geometry):
    shape = (2, 4, 7, 7) if geometry else (2, 9)
    a, b, whole, empty = (InputMean(geometry) for _ in range(4))
    first, second = torch.randn(shape), torch.randn(shape)
    a.update(first)
    b.update(second)
    whole.update(torch.cat([first, second]))
    assert torch.allclose(a.merge(b).mean(), whole.mean())
    assert torch.equal(a.merge(empty).mean(), a.mean())
    assert torch.equal(empty.merge(a).mean(), a.mean())


def test_unbatched_images_count_as_one():
    geometry = Geometry((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    a, b = InputMean(geometry), InputMean(geometry)
    x = torch.randn(3, 4, 4)
    a.update(x)
    b.update(x[None])
    assert torch.equal(a.mean(), b.mean())


def test_empty_inputs_and_no_data_are_refused():
    with pytest.raises(FewbitError, match="fc got an empty input"):
        InputMean(None, "fc").update(torch.zeros(0, 4))
    with pytest.raises(FewbitError, match="fc saw no calibration data"):
        InputMean(None, "fc").mean()
