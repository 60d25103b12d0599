"""Round to nearest: the compiled path equals the plain affine map, and each code is the nearest one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit import calibrate
from fewbit.algorithms import rtn
from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec

SPECS = [
    "int8/channel/sym",
    "int4/g32/asym",
    "uint4/g16/sym",
    "int3/g8/asym",
    "int16/channel/sym",
    "uint16/channel/asym",
    "nf4/g32/sym",
]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SPECS),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(0, 2**31),
    st.sampled_from(["minmax", "mse"]),
)
def test_the_compiled_path_equals_the_affine_map(text, rows, columns, seed, calibrator):
    spec = QSpec.parse(text)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    t = rtn.quantize_weight(x, spec, rtn.Options(calibrator))
    bounds = calibrate.solve_tensor(calibrator, x, spec)
    scale, zero_point = affine.scale_and_zero_point(bounds.lo, bounds.hi, spec)
    want = affine.quantize(x, spec, scale=scale, zero_point=zero_point)
    assert t.codes.dtype == want.codes.dtype == spec.format.code_dtype
    assert torch.equal(t.codes.to(torch.int32), want.codes.to(torch.int32))
    assert torch.equal(t.scale, want.scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    x = torch.randn(6, 64).to(dtype)
    t = rtn.quantize_weight(x, QSpec.parse("int8/channel/sym"))
    assert (t.dequantize() - x.float()).abs().max() <= t.scale.max() / 2 * 1.001


def test_mse_ranges_are_never_worse_than_minmax():
    torch.manual_seed(0)
    x = torch.randn(16, 128) * torch.rand(16, 1).exp()
    x[:, 0] *= 12
    for text in ("int4/channel/sym", "int4/g32/asym", "int3/channel/sym", "int8/channel/sym"):
        errors = [
            (rtn.quantize_weight(x, QSpec.parse(text), rtn.Options(c)).dequantize() - x).square().sum(1)
            for c in ("mse", "minmax")
        ]
        if "g32" not in text:
            assert (errors[0] <= errors[1] * (1 + 1e-5)).all(), text
        assert errors[0].sum() < errors[1].sum() * (1 + 1e-5)


def test_defaults_clip_below_eight_bits_only():
    x = torch.randn(4, 256)
    eight, four = QSpec.parse("int8/channel/sym"), QSpec.parse("int4/channel/sym")
    assert torch.equal(rtn.quantize_weight(x, eight).scale, rtn.quantize_weight(x, eight, rtn.Options("minmax")).scale)
    assert torch.equal(rtn.quantize_weight(x, four).scale, rtn.quantize_weight(x, four, rtn.Options("mse")).scale)


def test_nan_names_the_tensor():
    with pytest.raises(FewbitError, match="layer7 holds NaN"):
        rtn.quantize_weight(torch.tensor([[1.0, float("nan")]]), QSpec.parse("int8/channel/sym"), None, "layer7")
