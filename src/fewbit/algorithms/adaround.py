"""AdaRound: whether a weight is rounded up or down is learned, so that the layer's output changes least.

Source: arXiv 2004.10568. The paper descends on samples of the layer's output; here all data enters through the Gram
matrix of the input, ``‖(W − W̃) X‖² = tr(D G Dᵀ)`` (its equation 13), whose gradient has no noise, so that a few
hundred steps do. Scales are chosen by the same error. Coordinate descent settles what learning left between two codes,
and rows that rounding to nearest serves better are rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit import algorithms
from fewbit.algorithms import _batched, _lattice, rtn
from fewbit.algorithms._soft_rounding import SoftRounding
from fewbit.calibrate.gram import Statistics, output_error
from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram",)
_RELATIVE_FLOOR = 1e-12


@dataclass(frozen=True)
class Options:
    """How the rounding is learned.

    Attributes:
        steps: Of Adam.
        rate: Adam's learning rate.
        drive: How strongly weights are driven to an end, against an output error of 1 (that of rounding to nearest).
        sweeps: Of coordinate descent at the end.
        damping: Added to the diagonal of G for coordinate descent, in units of its mean.
        clips: Shares of a row's range that are tried.
        calibrator: How ranges are chosen, a file of :mod:`fewbit.calibrate`; None: by the output error where a scale
            serves a whole row, else as :mod:`~fewbit.algorithms.rtn`.
    """

    steps: int = 200
    rate: float = 0.05
    drive: float = 0.1
    sweeps: int = 8
    damping: float = 0.01
    clips: int = 16
    calibrator: str | None = None


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a matrix ``[out, K]`` by the Gram matrix of its input.

    Args:
        weight: Floating matrix.
        spec: An integer format, any granularity.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Of the layer's input.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values; a format that is not of integers.
    """
    options = options or Options()
    affine.check_finite(weight, name)
    gram = algorithms.required(statistics, "adaround", name).gram.matrix.to(weight.device, torch.float32)
    if options.steps < 1 or not options.rate > 0 or not options.drive >= 0:
        raise FewbitError("adaround takes 1 step or more, a positive rate, and a drive that is not negative")
    weight = weight.detach().to(torch.float32)
    nearest = rtn.quantize_weight(weight, spec, rtn.Options(options.calibrator), name)
    start = _rescaled(weight, nearest, gram, options)
    learned = _learn(weight, start, gram, options, name)
    settled = _descended(weight, learned, gram, options)
    return _better_rows(settled, nearest, weight, gram)


def _rescaled(weight: Tensor, nearest: QTensor, gram: Tensor, options: Options) -> QTensor:
    """Rounded to nearest under the scale of each row that leaves the least output error."""
    spec = nearest.spec
    if not (spec.symmetric and spec.granularity == PerChannel(0) and options.calibrator is None):
        return nearest
    scale = _batched.best_scale(weight[None], gram[None], spec, options.clips)[0]
    return affine.quantize(weight, spec, scale=scale)


def _descended(weight: Tensor, learned: QTensor, gram: Tensor, options: Options) -> QTensor:
    """Codes moved one by one, over the whole grid, while that lowers the output error."""
    spec, (rows, columns) = learned.spec, weight.shape
    if options.sweeps < 1:
        return learned
    group = _lattice.group_size(spec, columns, "weight")
    damped = torch.nn.functional.pad(gram, (0, -columns % group, 0, -columns % group))
    damped.diagonal().add_(options.damping * gram.diagonal().mean())
    scale = learned.scale.reshape(-1, 1).expand(rows, 1) if learned.scale.dim() < 2 else learned.scale
    zero = torch.zeros_like(scale)
    if learned.zero_point is not None:
        zero = learned.zero_point.to(torch.float32).reshape(scale.shape if learned.zero_point.dim() else (1, 1))
    codes = learned.codes.to(torch.int32).contiguous()
    change = torch.nn.functional.pad(weight - learned.dequantize(), (0, -columns % group))
    rounded = _lattice.Rounded(codes, scale.contiguous(), zero.expand(scale.shape).contiguous(), change)
    found, _ = _lattice.descend(rounded, change @ damped, damped, spec, group, options.sweeps)
    return QTensor(found.codes.to(learned.codes.dtype), learned.scale, learned.zero_point, spec, learned.shape)


def _learn(weight: Tensor, nearest: QTensor, gram: Tensor, options: Options, name: str) -> QTensor:
    """Adam on the output error of each row, in units of that of rounding to nearest."""
    rounding = SoftRounding(weight, nearest, name)
    before = output_error(nearest.dequantize() - weight, gram)
    worth = 1 / before.clamp(min=_RELATIVE_FLOOR * float(before.max().clamp(min=1e-30)))
    optimizer = torch.optim.Adam([rounding.variable], lr=options.rate)
    with torch.enable_grad():
        for step in range(options.steps):
            change = rounding.weight() - weight
            loss = (((change @ gram) * change).sum(1) * worth).sum()
            loss = loss + options.drive * rounding.penalty(step / options.steps)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return rounding.settled()


def _better_rows(learned: QTensor, nearest: QTensor, weight: Tensor, gram: Tensor) -> QTensor:
    """Row by row the codes and scales with the smaller output error; with one scale for all, as a whole."""
    errors = [output_error(each.dequantize() - weight, gram) for each in (learned, nearest)]
    if isinstance(nearest.spec.granularity, PerTensor):
        return learned if errors[0].sum() <= errors[1].sum() else nearest
    mark = errors[0] <= errors[1]

    def chosen(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(mark.reshape(-1, *[1] * (one.dim() - 1)), one, other)

    zero = None
    if learned.zero_point is not None and nearest.zero_point is not None:
        zero = chosen(learned.zero_point, nearest.zero_point)
    codes, scale = chosen(learned.codes, nearest.codes), chosen(learned.scale, nearest.scale)
    return QTensor(codes, scale, zero, nearest.spec, nearest.shape)
