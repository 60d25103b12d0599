"""Round to nearest: the range of each block by a calibrator, then every weight to its nearest code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit import calibrate
from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ()

# From this width on the error of rounding is so small that clipping gains nothing.
MINMAX_FROM_BITS = 8


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
    calibrator = options.calibrator or ("minmax" if spec.bits >= MINMAX_FROM_BITS else "mse")
    by_row = isinstance(spec.granularity, PerGroup) or spec.granularity == PerChannel(0)
    compiled = by_row and spec.format.is_integer and weight.dtype != torch.float64
    if compiled and calibrator == "minmax" and spec.bits <= 8 and weight.numel() and weight.is_floating_point():
        return _in_one_pass(weight, spec, name)
    bounds = calibrate.solve_tensor(calibrator, weight, spec, options.calibrator_options, name)
    scale, zero_point = affine.scale_and_zero_point(bounds.lo, bounds.hi, spec, name)
    if not compiled:
        return affine.quantize(weight, spec, scale=scale, zero_point=zero_point, name=name)
    return _by_rows(weight, spec, scale, zero_point)


def _by_rows(weight: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> QTensor:
    """The affine map through the compiled kernel; the weight was found finite when its ranges were."""
    blocks = spec.granularity.to_blocks(weight.detach()).contiguous()
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    codes = dispatch.quantize_rows(blocks, scale.reshape(-1), zero.reshape(-1), int(spec.qmin), int(spec.qmax))
    shape = tuple(weight.shape)
    padded = codes.reshape(spec.granularity.padded_shape(shape)).to(spec.format.code_dtype)
    return QTensor(padded, scale, zero_point, spec, shape)


def _in_one_pass(weight: Tensor, spec: QSpec, name: str) -> QTensor:
    """Over each block's own range, which a ragged group's padding of zeros does not change."""
    grain, shape = spec.granularity, tuple(weight.shape)
    try:
        codes, scale, zero_point = dispatch.minmax_quantize_rows(grain.to_blocks(weight).contiguous(), spec, 8)
    except FewbitError:  # say which tensor
        affine.check_finite(weight, name)
        bounds = calibrate.solve_tensor("minmax", weight, spec, None, name)
        affine.scale_and_zero_point(bounds.lo, bounds.hi, spec, name)
        raise
    if zero_point is not None:
        zero_point = zero_point.reshape(grain.scale_shape(shape))
    padded = codes.view(spec.format.code_dtype).reshape(grain.padded_shape(shape))
    return QTensor(padded, scale.reshape(grain.scale_shape(shape)), zero_point, spec, shape)
