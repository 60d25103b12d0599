from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewbit.calibrate.patches import patch_rows
from fewbit.kernels.products import Geometry


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(1, 1, 0), (3, 1, 1), (3, 2, 0), (1, 2, 0)])
def test_rows_times_weight_are_the_convolution(groups: int, kernel: int, stride: int, pad: int) -> None:
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(8, 4 // groups, kernel, kernel)
    walk = Geometry((kernel, kernel), (stride, stride), ((pad, pad), (pad, pad)), (1, 1), groups)
    rows = patch_rows(x, walk, 10**6)
    made = rows @ weight.reshape(groups, 8 // groups, -1).transpose(1, 2)
    exact = F.conv2d(x, weight, None, stride, pad, 1, groups)
    made = made.reshape(groups, 2, -1, 8 // groups).permute(1, 0, 3, 2).reshape(exact.shape)
    torch.testing.assert_close(made, exact, rtol=1e-4, atol=1e-4)


def test_a_share_of_the_rows() -> None:
    x = torch.randn(4, 10, 6)
    assert torch.equal(patch_rows(x, None, 40)[0], x.reshape(-1, 6))
    assert patch_rows(x, None, 10).shape == (1, 10, 6)
    signal = Geometry((3,), (1,), ((1, 1),), (1,), 1)
    assert patch_rows(torch.randn(2, 3, 50), signal, 20).shape[2] == 9
