"""Inputs whose range is found as they come: nothing is clipped, so the gradient passes everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.kernels import activations
from fewbit.numbers import affine
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.train.gradient import substitute


class DynamicFake(nn.Module):
    """Fake-quantizes with the codes that a dynamic input quantizer gives."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the spec's granularity takes."""
        with torch.no_grad():
            codes, scale, zero_point = activations.quantize_dynamic(x, self.spec)
            value = affine.dequantize(QTensor(codes, scale, zero_point, self.spec, tuple(x.shape)))
        return substitute(x, value.to(x.dtype))

    def extra_repr(self) -> str:
        """The spec."""
        return f"{self.spec}, dynamic"
