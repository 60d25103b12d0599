from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.integer.ir import Affine
from fewbit.integer.layer_kernels import conv_kernel, linear_kernel
from fewbit.integer.lower import LayerNumbers
from fewbit.kernels import reference
from fewbit.kernels.products import Geometry


def numbers(codes: torch.Tensor, x: Affine, y: Affine | None, low: int = 0, high: int = 255) -> LayerNumbers:
    generator = torch.Generator().manual_seed(3)
    step = torch.rand(len(codes), generator=generator, dtype=torch.float64) * 1e-3 + 1e-4
    bias = torch.randint(-500, 500, (len(codes),), generator=generator, dtype=torch.int32)
    return LayerNumbers(x, y, codes, bias, step, low, high)


GEOMETRIES = st.builds(
    lambda kernel, stride, pads, groups: Geometry(kernel, stride, pads, (1, 1), groups),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    st.sampled_from([1, 2, 8]),
)


@settings(max_examples=40)
@given(GEOMETRIES, st.integers(0, 255), st.booleans(), st.integers(0, 2**20))
def test_convolutions_are_within_one_code_of_the_exact_sum(walk: Geometry, zero: int, signed: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_codes = torch.randint(0, 256, (2, 8, 6, 7), generator=generator, dtype=torch.uint8)
    codes = torch.randint(-128, 128, (8, 8 // walk.groups, *walk.kernel), generator=generator, dtype=torch.int8)
    shift = 128 if signed else 0
    x = Affine(0.01, zero - shift, -shift, 255 - shift)
    y = Affine(0.5, 100 - shift, -shift, 255 - shift)
    made = numbers(codes, x, y, 20 - shift, 240 - shift)
    result = conv_kernel(made, walk, (0.0, 1.0))(x_codes)
    exact = reference.wide_conv(
        x_codes, codes, zero, stride=walk.stride, padding=walk.padding, dilation=(1, 1), groups=walk.groups
    )
    real = (exact + made.bias.reshape(-1, 1, 1)).double() * made.multiplier.reshape(-1, 1, 1) + 100
    off = (result.double() - real.round().clamp(20, 240)).abs()
    assert float(off.max()) <= 1
    assert float((off > 0).double().mean()) < 0.01


@pytest.mark.parametrize("isa", ["", "portable"])
def test_linear_layers_to_codes_and_to_float(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWBIT_ISA", isa)
    x_codes = torch.randint(0, 256, (2, 3, 20), dtype=torch.uint8)
    codes = torch.randint(-128, 128, (5, 20), dtype=torch.int8)
    x, y = Affine(0.01, 7, 0, 255), Affine(0.5, 100, 0, 255)
    made = numbers(codes, x, y)
    exact = ((x_codes.double() - 7) @ codes.double().t() + made.bias) * made.step
    off = linear_kernel(made, None)(x_codes).double() - (exact / 0.5).round().add(100).clamp(0, 255)
    assert float(off.abs().max()) <= 1
    as_float = linear_kernel(numbers(codes, x, None), (-0.5, 0.25))(x_codes)
    assert torch.allclose(as_float.double(), exact.clamp(-0.5, 0.25), atol=1e-4)
