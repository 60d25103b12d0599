"""The few-pass function against the plain formula."""

from __future__ import annotations

import pytest
import torch

from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train.static_input import fake_input


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("learn", "by_range"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("spec", ["uint8/tensor/asym", "uint2/tensor/asym", "int4/tensor/sym"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_plain_formulas(
    spec: str, learn: bool, by_range: bool, dtype: torch.dtype, layout
) -> None:
    parsed = QSpec.parse(spec)
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 3, 8, 9, 9, generator=generator).to(dtype)
    x, g = x.contiguous(memory_format=layout), g.contiguous(memory_format=layout)
    found = []
    for function in (fake_input, affine.straight_through):
        value, scale = x.clone().requires_grad_(), torch.tensor(0.11, requires_grad=True)
        zero = None if parsed.symmetric else torch.tensor(1.0, requires_grad=True)
        out = function(value, parsed, scale, zero, learn_rounding=learn, by_range=by_range)
        out.backward(g)
        found.append((out.detach(), value.grad, scale.grad, None if zero is None else zero.grad))
    (mine, mine_x, mine_s, mine_z), (wanted, wanted_x, wanted_s, wanted_z) = found
    assert mine.dtype == dtype
    assert mine.is_contiguous(memory_format=layout)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(mine, wanted, rtol=tolerance)
    assert torch.equal(mine_x, wanted_x)
    assert torch.allclose(mine_s, wanted_s, rtol=tolerance, atol=tolerance * 20)
    if wanted_z is not None:
        assert torch.allclose(mine_z, wanted_z, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_shows(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.2, torch.nan], [0.1, 0.3]], dtype=dtype)
    out = fake_input(x, QSpec.parse("uint4/tensor/asym"), torch.tensor(0.1), torch.tensor(0.0), learn_rounding=True)
    assert out.isnan().tolist() == [[False, True], [False, False]]


def test_what_the_kernel_does_not_take_goes_the_plain_way() -> None:
    for x, spec, scale in (
        (torch.randn(4, dtype=torch.float64), "int4/tensor/sym", torch.tensor(0.1, dtype=torch.float64)),
        (torch.randn(4), "int16/tensor/sym", torch.tensor(0.001)),
        (torch.randn(0, 3), "int4/tensor/sym", torch.tensor(0.1)),
    ):
        out = fake_input(x, QSpec.parse(spec), scale, None, learn_rounding=True)
        assert torch.equal(out, affine.simulate(x, QSpec.parse(spec), scale))
