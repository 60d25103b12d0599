"""Inputs that a quantized layer refuses, each with its reason, before and after the layer is bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fewbit
from fewbit import _native as native
from fewbit.errors import FewbitError

SCHEMES = ("W4A16-g32", "W4A8-dynamic-g32", "W8A8-dynamic")


@pytest.fixture(params=SCHEMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    made = fewbit.quantize(nn.Sequential(nn.Linear(64, 32)).eval(), request.param, calibrator="minmax")
    made(torch.randn(2, 64))
    return made


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x: m(x.to(torch.int64)), "floating point inputs, not torch.int64"),
        (lambda m, x: m(x > 0), "floating point inputs, not torch.bool"),
        (lambda m, x: m(x.to(torch.complex64)), "floating point inputs, not torch.complex64"),
        (lambda m, x: m(x[0, 0]), "without dimensions"),
        (lambda m, x: torch.vmap(m)(x), "torch.func"),
        (lambda m, x: torch.func.grad(lambda v: m(v).sum())(x), "torch.func"),
        (lambda m, x: torch.func.jvp(m, (x,), (x,)), "torch.func"),
    ],
)
def test_refused(model: nn.Module, call: Callable[[nn.Module, Tensor], object], sentence: str) -> None:
    with pytest.raises(FewbitError, match=sentence):
        call(model, torch.randn(3, 64))


def test_a_convolution_refuses_too() -> None:
    made = fewbit.quantize(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), "W8A8-dynamic", calibrator="minmax")
    with pytest.raises(FewbitError, match="floating point inputs"):
        made(torch.ones(1, 4, 8, 8, dtype=torch.int32))


def test_a_tangent_goes_through_float_products_and_not_through_integers() -> None:
    float_layer = nn.Sequential(nn.Linear(64, 32)).eval()
    x, direction = torch.randn(3, 64), torch.randn(3, 64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        soft = fewbit.quantize(float_layer, "W4A16-g32", calibrator="minmax")
        soft(x)
        moved = forward_ad.unpack_dual(soft(dual)).tangent
        hard = fewbit.quantize(float_layer, "W4A8-dynamic-g32", calibrator="minmax")
        hard(x)
        with pytest.raises(FewbitError, match="forward-mode"):
            hard(dual)
    with torch.no_grad():
        wanted = soft(x + direction) - soft(x)
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[*native.available_isas(), "twins"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = native.isa()
    if request.param == "twins":
        monkeypatch.setenv("FEWBIT_ISA", "reference")
    else:
        native.use_isa(request.param)
    yield
    native.use_isa(before)


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "W4A8-dynamic-g32", "W3A8-dynamic-g32"])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.usefixtures("isa")
def test_an_infinite_input_makes_its_row_nan_and_no_other(scheme: str, rows: int) -> None:
    layer = fewbit.quantize(nn.Sequential(nn.Linear(64, 20)).eval(), scheme, calibrator="minmax")
    x = torch.randn(rows, 64)
    x[0, 3] = -math.inf
    for dtype in (torch.float32, torch.bfloat16):
        y = layer(x.to(dtype))
        assert y[0].isnan().all()
        assert y[1:].isfinite().all()


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g32-asym", "W8A8-dynamic", "W4A8-dynamic-g32", "W3A8-dynamic-g32"])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("value", [1e37, 3e38])
@pytest.mark.usefixtures("isa")
def test_huge_inputs_do_not_overflow_where_the_result_does_not(scheme: str, rows: int, value: float) -> None:
    layer = nn.Sequential(nn.Linear(64, 20, bias=False)).eval()
    quantized = fewbit.quantize(layer, scheme, calibrator="minmax")
    x = torch.randn(rows, 64)
    x[0], x[0, 5] = 0, value
    y = quantized(x)
    small = x.clone()
    small[0, 5] = 1.0
    assert y.isfinite().all()
    torch.testing.assert_close(y[0] / value, quantized(small)[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(y[1:], quantized(small)[1:], rtol=0, atol=0)
