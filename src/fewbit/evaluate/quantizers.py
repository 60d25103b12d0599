"""Rounding and clipping of a quantized layer's weights and of its static input quantizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewbit.evaluate.error import SignalNoise, SplitSums
from fewbit.nn.quantizers import StaticQuantizer
from fewbit.nn.swap import quantized_weight
from fewbit.numbers.affine import fake_quantize
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

# Rows are measured in pieces of about this many values: errors are computed in float64.
_PIECE = 1 << 22


def weight_sums(weight: Tensor, quantized: QTensor) -> tuple[SignalNoise, SplitSums]:
    """Errors of a quantized weight matrix.

    Args:
        weight: Float ``[rows, columns]``.
        quantized: Its codes, of the same shape.
    """
    energies, split = SignalNoise(), SplitSums()
    measured = quantized.dequantize()
    step, lo, hi = (_spread(value, quantized) for value in grid(quantized.scale, quantized.zero_point, quantized.spec))
    rows = max(1, _PIECE // max(1, weight.shape[-1]))
    for start in range(0, weight.shape[0], rows):
        piece = slice(start, start + rows)
        x = weight[piece].detach().to(torch.float32)
        energies.add(x, measured[piece])
        split.add(x, measured[piece], step[piece], lo[piece], hi[piece])
    return energies, split


def input_sums(layer: nn.Module, x: object, sums: SplitSums) -> None:
    """Count in what a static input quantizer does to one input; nothing for layers without one.

    Args:
        layer: A quantized layer.
        x: What it was called with.
        sums: Where to count.
    """
    quantizer = quantized_weight(layer).input_quantizer
    if not isinstance(quantizer, StaticQuantizer) or not isinstance(x, Tensor) or not x.is_floating_point():
        return
    scale, zero_point, spec = quantizer.scale, quantizer.zero_point, quantizer.spec
    x = x.detach().to(torch.float32)
    sums.add(x, fake_quantize(x, spec, scale=scale, zero_point=zero_point), *grid(scale, zero_point, spec))


def input_spec(layer: nn.Module) -> str:
    """How a quantized layer's input is quantized: its spec, with ``dynamic`` behind it, or ``float``."""
    quantizer = quantized_weight(layer).input_quantizer
    if quantizer is None:
        return "float"
    return str(quantizer.spec) if isinstance(quantizer, StaticQuantizer) else f"{quantizer.spec} dynamic"


def grid(scale: Tensor, zero_point: Tensor | None, spec: QSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Step, smallest and largest representable value, of the scale's shape.

    The step is 0 for formats whose values are not evenly spaced: step²/12 says nothing of them.
    """
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
    step = scale if spec.format.is_integer else torch.zeros_like(scale)
    return step, scale * (spec.qmin - zero), scale * (spec.qmax - zero)


def _spread(value: Tensor, quantized: QTensor) -> Tensor:
    """One value a block as one value an element, of the tensor's shape."""
    grain, shape = quantized.spec.granularity, quantized.shape
    padded = grain.padded_shape(shape)
    blocked = grain.blocked(torch.empty(1).expand(math.prod(padded)).reshape(padded))
    return grain.unblocked(grain.expand(value, len(shape)).expand(blocked.shape), shape)[..., : shape[-1]]
