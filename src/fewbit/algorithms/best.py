"""Of several algorithms the one that loses least, measured on data that none of them saw.

Each candidate is fitted to the Gram matrix of the layer's input and judged by the output error ``d G dᵀ`` on a Gram
matrix that was held back. Rows of a weight do not meet in that error, so each row (with one scale for the whole tensor:
the tensor) takes its own best, and the result is never worse than any candidate on the held-back data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit import algorithms
from fewbit.algorithms import awq, gptq, hqq, rtn
from fewbit.calibrate.gram import Statistics, output_error
from fewbit.numbers.granularity import PerChannel, PerGroup, PerToken
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram", "held_back")
# Where the model is in memory its scales and norms are tuned as a whole afterwards (fewbit.nn.tune).
TUNES = True


@dataclass(frozen=True)
class Options:
    """Who takes part.

    Attributes:
        data_free: Rounding to nearest (min-max and MSE ranges) and HQQ-style refinement.
        clipped: AWQ's search of clips.
        dampings: GPTQ with each of these.
        refits: Of scales to codes, in GPTQ.
    """

    data_free: bool = True
    clipped: bool = True
    dampings: tuple[float, ...] = (0.01,)
    refits: int = 1


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a matrix ``[out, K]`` row by row as suits it best.

    Args:
        weight: Floating matrix.
        spec: Any format; per tensor, channel (axis 0) or group.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Of the layer's input; candidates are judged on what is held back, where there is any.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values.
    """
    statistics = algorithms.required(statistics, "best", name)
    held_back = statistics.held_back
    judge = held_back if held_back is not None and held_back.count else statistics.gram
    gram = judge.matrix.to(weight.device)
    best, least = None, torch.zeros(0)
    for candidate in _candidates(weight, spec, options or Options(), name, statistics):
        error = output_error(candidate.dequantize() - weight.to(torch.float32), gram)
        if best is None:
            best, least = candidate, error
        elif _by_row(spec):
            better = error < least
            best, least = _rows(better, candidate, best), torch.where(better, error, least)
        elif error.sum() < least.sum():
            best, least = candidate, error
    assert best is not None
    return best


def _candidates(weight: Tensor, spec: QSpec, options: Options, name: str, statistics: Statistics) -> Iterator[QTensor]:
    for damping in options.dampings:
        for static in (False, True) if isinstance(spec.granularity, PerGroup) else (False,):
            own = gptq.Options(damping=damping, refits=options.refits, static_groups=static)
            yield gptq.quantize_weight(weight, spec, own, name, statistics)
    if options.data_free:
        for calibrator in ("minmax", "mse"):
            yield rtn.quantize_weight(weight, spec, rtn.Options(calibrator), name)
        yield hqq.quantize_weight(weight, spec, None, name)
    if options.clipped:
        yield awq.quantize_weight(weight, spec, None, name, statistics)


def _by_row(spec: QSpec) -> bool:
    return isinstance(spec.granularity, PerGroup | PerToken) or spec.granularity == PerChannel(0)


def _rows(better: Tensor, one: QTensor, other: QTensor) -> QTensor:
    """``one`` in the rows that are marked, ``other`` elsewhere."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    zero = None
    if one.zero_point is not None and other.zero_point is not None:
        zero = mixed(one.zero_point, other.zero_point)
    return replace(other, codes=mixed(one.codes, other.codes), scale=mixed(one.scale, other.scale), zero_point=zero)
