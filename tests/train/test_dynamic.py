"""Dynamic inputs in training: the codes of the deployed quantizer, the gradient of the identity."""

from __future__ import annotations

import pytest
import torch

from fewbit.nn.quantizers import DynamicQuantizer
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.train.dynamic import DynamicFake


@pytest.mark.parametrize("text", ["int8/token/sym", "int4/channel/sym", "uint8/tensor/asym"])
def test_values_are_the_deployed_ones_and_the_gradient_passes(text: str) -> None:
    spec = QSpec.parse(text)
    x = torch.randn(3, 5, 4, requires_grad=True)
    codes, scale, zero_point = DynamicQuantizer(spec)(x.detach())
    out = DynamicFake(spec)(x)
    assert torch.equal(out, QTensor(codes, scale, zero_point, spec, (3, 5, 4)).dequantize())
    upstream = torch.randn(3, 5, 4)
    out.backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert "dynamic" in repr(DynamicFake(spec))
