"""Every file of the package is an estimator, and keeps the promises of one."""

from __future__ import annotations

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.train import estimators

NAMES = estimators.names()


def test_names_and_an_unknown_one() -> None:
    assert NAMES == ["lsq", "lsq_plus", "pact", "ste"]
    with pytest.raises(FewbitError, match="there are lsq, lsq_plus, pact, ste"):
        estimators.get("dorefa")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spec", ["int8/channel/sym", "int4/g4/asym", "int2/tensor/sym", "ternary/channel/sym", "nf4/g4/sym"]
)
def test_a_weight_s_values_are_those_of_the_deployed_grid(name: str, spec: str) -> None:
    parsed = QSpec.parse(spec)
    w = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    low, high = torch.aminmax(parsed.granularity.to_blocks(w), dim=1)
    shape = parsed.granularity.scale_shape((4, 8))
    start = affine.scale_and_zero_point(low.reshape(shape), high.reshape(shape), parsed)
    quantizer = estimators.get(name).weight_quantizer(w, parsed, start, "w")
    out = quantizer(w.requires_grad_())
    scale, zero_point = quantizer.deployed(w.detach())
    assert torch.equal(out, affine.quantize(w.detach(), parsed, scale=scale, zero_point=zero_point).dequantize())
    out.sum().backward()
    assert w.grad is not None
    assert w.grad.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["uint8/tensor/asym", "uint2/tensor/asym", "int4/tensor/sym"])
@pytest.mark.parametrize("started", [True, False])
def test_an_input_s_values_are_those_of_the_deployed_grid(name: str, spec: str, started: bool) -> None:
    parsed = QSpec.parse(spec)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    start = affine.scale_and_zero_point(x.min(), x.max(), parsed) if started else None
    quantizer = estimators.get(name).input_quantizer(parsed, start, "x")
    out = quantizer(x)
    scale, zero_point = quantizer.deployed(torch.empty(0))
    assert torch.equal(out, affine.quantize(x, parsed, scale=scale, zero_point=zero_point).dequantize())
    again = estimators.get(name).input_quantizer(parsed, None, "x")
    again.load_state_dict(quantizer.state_dict())
    assert again.started
    assert torch.equal(again.deployed(torch.empty(0))[0], scale)
