"""The portable products hold every integer exactly, beyond int32 as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from product_cases import integers
from torch import Tensor

from fewbit.kernels import portable, reference

ENDS = {
    "int8": (-128, 127, torch.int8),
    "uint8": (0, 255, torch.uint8),
    "int16": (-32768, 32767, torch.int16),
    "uint16": (0, 65535, torch.uint16),
}


def codes(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    low, high, dtype = ENDS[name]
    return integers(low, high, shape, seed).to(dtype)


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 50), st.integers(1, 4)),
    st.sampled_from(list(ENDS)),
    st.sampled_from(list(ENDS)),
    st.booleans(),
    st.integers(0, 1000),
)
def test_int_matmul_equals_int64(shape: tuple[int, int, int], left: str, right: str, each: bool, seed: int) -> None:
    m, k, n = shape
    x, weight = codes(left, (m, k), seed), codes(right, (n, k), seed + 1)
    zx: Tensor | int = codes(left, (m, 1), seed + 2).to(torch.int32) if each else 5
    zw: Tensor | int = codes(right, (n, 1), seed + 3).to(torch.int32) if each else -3
    result = portable.int_matmul(x, weight, zx, zw)
    wanted = (x.numpy().astype(np.int64) - np.asarray(zx)) @ (weight.numpy().astype(np.int64) - np.asarray(zw)).T
    assert result.dtype == torch.float64
    assert np.array_equal(result.numpy().astype(np.int64), wanted)


def test_a_sum_far_beyond_int32_loses_nothing() -> None:
    depth = 2**17
    x = torch.full((1, depth), -32768, dtype=torch.int16)
    weight = torch.full((1, depth), -32768, dtype=torch.int16)
    x[0, 0] = 1  # an odd sum: its last bit shows what float32 would lose
    weight[0, 0] = 1
    assert int(portable.int_matmul(x, weight, 0, 0).item()) == (depth - 1) * 2**30 + 1


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("each", [False, True], ids=["no-zero-points", "zero-points"])
def test_int_conv_equals_the_reference(axes: int, groups: int, each: bool) -> None:
    kernel, stride, dilation = (2, 3, 1)[:axes], (1, 2, 1)[:axes], (2, 1, 1)[:axes]
    padding = ((0, 2), (1, 1), (1, 0))[:axes]
    x = codes("uint8", (2, 4, *(7, 6, 3)[:axes]), axes)
    weight = codes("int8", (8, 4 // groups, *kernel), groups)
    zw: Tensor | int = codes("int8", (8,), 3) if each else 0
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    zx = 131 if each else 0
    result = portable.int_conv(x, weight, zx, zw, **arguments)  # type: ignore[arg-type]
    wanted = reference.int_conv(x, weight, zx, zw, **arguments)  # type: ignore[arg-type]
    assert result.dtype == torch.float64
    assert torch.equal(result, wanted.to(torch.float64))
