"""Input quantizers: the part of a quantized layer that turns its float input into codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.kernels import ops
from fewbit.nn.precision import FixedDtypes
from fewbit.numbers.spec import QSpec

Codes = tuple[Tensor, Tensor, Tensor | None]


class StaticQuantizer(FixedDtypes):
    """Codes with a calibrated scale ``()`` and zero point ``()`` for the whole tensor."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Codes:
        """Codes of the shape of ``x``, scale ``()``, zero point ``()`` or None."""
        return ops.quantize_static(x, self.scale, self.zero_point, self.spec), self.scale, self.zero_point

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that is not clipped."""
        zero = 0.0 if self.zero_point is None else float(self.zero_point)
        return float(self.scale) * (self.spec.qmin - zero), float(self.scale) * (self.spec.qmax - zero)

    def config(self) -> dict[str, Any]:
        """What :func:`quantizer_from_config` needs."""
        return {"mode": "static", "spec": str(self.spec), "zero_point": self.zero_point is not None}

    def extra_repr(self) -> str:
        """The spec."""
        return str(self.spec)


class DynamicQuantizer(nn.Module):
    """Codes with a scale found from the input itself, per token (or per sample in a convolution)."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Codes:
        """Codes of the shape of ``x``, scale and zero point of the spec's scale shape."""
        return ops.quantize_dynamic(x, self.spec)

    def config(self) -> dict[str, Any]:
        """What :func:`quantizer_from_config` needs."""
        return {"mode": "dynamic", "spec": str(self.spec)}

    def extra_repr(self) -> str:
        """The spec."""
        return str(self.spec)


InputQuantizer = StaticQuantizer | DynamicQuantizer


def quantizer_from_config(config: dict[str, Any] | None) -> InputQuantizer | None:
    """An empty quantizer whose state is loaded afterwards."""
    if config is None:
        return None
    spec = QSpec.parse(config["spec"])
    if config["mode"] == "dynamic":
        return DynamicQuantizer(spec)
    zero_point = torch.zeros((), dtype=torch.int32) if config["zero_point"] else None
    return StaticQuantizer(spec, torch.ones(()), zero_point)
