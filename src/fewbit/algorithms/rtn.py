"""Round to nearest: the range of each block by a calibrator, then every weight to its nearest code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit import calibrate
from fewbit.calibrate.gram import Statistics
from fewbit.kernels import dispatch
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ()

# From this width on the error of rounding is so small that clipping gains nothing.
_MINMAX_FROM_BITS = 8


@dataclass(frozen=True)
class Options:
    """How ranges are chosen.

    Attributes:
        calibrator: A file of :mod:`fewbit.calibrate`; None: ``minmax`` from 8 bits on, ``mse`` below.
        calibrator_options: The calibrator's ``Options``, None for its defaults.
    """

    calibrator: str | None = None
    calibrator_options: Any = None


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a tensor of any shape at the spec's granularity.

    Args:
        weight: Floating tensor.
        spec: The quantization.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Not used: the weight alone decides.

    Raises:
        FewbitError: NaN, infinity or no values; a scale that float32 cannot hold.
    """
    options = options or Options()
    calibrator = options.calibrator or ("minmax" if spec.bits >= _MINMAX_FROM_BITS else "mse")
    bounds = calibrate.solve_tensor(calibrator, weight, spec, options.calibrator_options, name)
    scale, zero_point = affine.scale_and_zero_point(bounds.lo, bounds.hi, spec, name)
    return _quantize(weight, spec, scale, zero_point, name)


def _quantize(weight: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None, name: str) -> QTensor:
    """The affine map, through the compiled kernel where blocks are rows in memory and codes are integers."""
    by_row = isinstance(spec.granularity, PerGroup) or spec.granularity == PerChannel(0)
    if not (by_row and spec.format.is_integer and weight.dtype != torch.float64):
        return affine.quantize(weight, spec, scale=scale, zero_point=zero_point, name=name)
    affine.check_finite(weight, name)
    blocks = spec.granularity.to_blocks(weight.to(torch.float32)).contiguous()
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    codes = dispatch.quantize_rows(blocks, scale.reshape(-1), zero.reshape(-1), int(spec.qmin), int(spec.qmax))
    shape = tuple(weight.shape)
    padded = codes.reshape(spec.granularity.padded_shape(shape)).to(spec.format.code_dtype)
    return QTensor(padded, scale, zero_point, spec, shape)
