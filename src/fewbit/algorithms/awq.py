"""AWQ: activation-aware weight quantization (Lin et al., arXiv 2306.00978).

Weights that meet large inputs matter more. Two searches use that, both for the least change of the output
``tr(D G Dᵀ)``, with the Gram matrix G of the input:

- **scales** (:func:`search_scale`, equation 4): the columns of all layers that share an input are multiplied by ``s``
  and the input is divided by it, ``Q(W·diag(s)) (diag(s)⁻¹ x)``; the division is folded into what computes the input.
  ``s`` is the mean magnitude of the input to a power that is searched, with and without that of the weights below it;
- **clips** (:func:`quantize_weight`): the range of each block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms import _clip, required, rtn
from fewbit.algorithms._channels import evenly, normalized, pooled
from fewbit.calibrate.gram import Statistics
from fewbit.kernels.side_by_side import side_by_side
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram",)
_PANEL = 256  # columns of a Gram matrix that are multiplied at a time


@dataclass(frozen=True)
class Options:
    """How finely to search.

    Attributes:
        calibrator: The clip search starts at the better of min-max and these ranges; None: as round-to-nearest.
        calibrator_options: The calibrator's ``Options``.
        grid: Powers of the magnitudes that are tried as scales.
        rows: At most so many rows of a weight take part in the search of scales.
        clips: Fractions of a block's range that are tried, evenly spaced from 1 down to ``least_clip``.
        least_clip: The smallest.
        sweeps: How often the clip search goes through the blocks.
    """

    calibrator: str | None = None
    calibrator_options: Any = None
    grid: int = 20
    rows: int = 256
    clips: int = 20
    least_clip: float = 0.4
    sweeps: int = 2


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a matrix with the clip of each block searched for the least output error.

    Args:
        weight: Floating ``[out, K]``.
        spec: The quantization.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: With the Gram matrix of the layer's input.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values; a scale that float32 cannot hold.
    """
    options = options or Options()
    affine.check_finite(weight, name)
    gram = required(statistics, "awq", name).gram.matrix
    single = gram.to(torch.float32)
    return _clip.by_rows(
        lambda rows: _clipped(rows, spec, options, gram, single, name), weight.detach().to(torch.float32), spec
    )


def search_scale(
    weights: Sequence[Tensor],
    specs: Sequence[QSpec],
    statistics: Statistics,
    options: Options | None = None,
    channels: Tensor | None = None,
    name: str = "weight",
) -> Tensor:
    """The scale of each channel with which the layers that share an input lose least.

    Args:
        weights: Floating ``[out, K]`` of each layer.
        specs: The quantization of each.
        statistics: Of the shared input.
        options: See :class:`Options`.
        channels: int64 ``[K]``, the channel of the feeding module that each input channel comes from; None: itself.
            Input channels of one feeding channel have one scale.
        name: Named in errors.

    Returns:
        float32 ``[channels of the feeding module]``, positive; all ones where no scale is better than none.
    """
    options = options or Options()
    gram = required(statistics, "awq", name).gram
    columns = gram.columns
    channels = torch.arange(columns) if channels is None else channels
    few = [evenly(weight.detach().to(torch.float32), options.rows) for weight in weights]
    matrix = gram.matrix.to(torch.float32)
    none = torch.ones(int(channels.max()) + 1)
    tried = [none, *_candidates(few, specs, pooled(gram.mean_abs.float(), channels, "mean"), channels, options)]
    search = _Losses(few, specs, matrix, name)
    losses = side_by_side(lambda scale: search.loss(scale[channels]), tried)
    best = tried[min(range(len(tried)), key=losses.__getitem__)]
    with_scale, without = (_clipped_loss(few, specs, matrix, scale[channels], options, name) for scale in (best, none))
    return best if with_scale < without else none


def _candidates(
    weights: Sequence[Tensor], specs: Sequence[QSpec], magnitude: Tensor, channels: Tensor, options: Options
) -> list[Tensor]:
    """``x^r`` and ``x^r / w^(1−r)``, for r from 0 to 1, each with its geometric middle at 1."""
    magnitude = magnitude.clamp(min=1e-4)
    of_weights = pooled(torch.cat([_relative(w, s) for w, s in zip(weights, specs)]).mean(dim=0), channels, "mean")
    of_weights = of_weights.clamp(min=1e-4)
    found = []
    for step in range(options.grid):
        power = step / options.grid
        found.append(normalized(magnitude**power))
        found.append(normalized(magnitude**power / of_weights ** (1 - power)))
    return found


def _relative(weight: Tensor, spec: QSpec) -> Tensor:
    """``|w|`` over the largest of its block."""
    if not isinstance(spec.granularity, PerGroup):
        return weight.abs() / weight.abs().amax().clamp(min=1e-30)
    blocks = spec.granularity.to_blocks(weight.abs())
    relative = blocks / blocks.amax(dim=1, keepdim=True).clamp(min=1e-30)
    return spec.granularity.from_blocks(relative, tuple(weight.shape))


class _Losses:
    """The output errors of scales with min-max ranges, over all layers.

    A scale whose first rows lose more than the best one so far in all need not be looked at further: which is the best
    does not depend on that, nor on how many are tried at a time.
    """

    def __init__(self, weights: Sequence[Tensor], specs: Sequence[QSpec], gram: Tensor, name: str) -> None:
        self.gram, self.name, self.least = gram, name, math.inf
        self.rows = [
            (rows, replace(spec, scale_type="f32")) for w, spec in zip(weights, specs) for rows in _parts(w, spec)
        ]

    def loss(self, scale: Tensor) -> float:
        """The error of a scale ``[K]``; infinity where it is not the least."""
        total = 0.0
        for rows, spec in self.rows:
            t = rtn.quantize_weight(rows * scale, spec, rtn.Options("minmax"), self.name)
            total += _error_sum((t.dequantize() / scale).sub_(rows), self.gram)
            if total > self.least:
                return math.inf
        self.least = min(self.least, total)
        return total


def _parts(weight: Tensor, spec: QSpec) -> Sequence[Tensor]:
    """Rows of a weight that are looked at together: all where they share a scale."""
    return torch.split(weight, _clip.ROWS) if _clip.has_rows(spec) else [weight]


def _error_sum(change: Tensor, gram: Tensor) -> float:
    """``tr(D G Dᵀ)``: what lies above the diagonal of the symmetric G counts twice, and below it not at all."""
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(gram), _PANEL):
        here = slice(first, first + _PANEL)
        product = change[:, here] @ gram[here, here]
        if first:
            product.addmm_(change[:, :first], gram[:first, here], alpha=2)
        total += product.mul_(change[:, here]).sum(dim=1).sum(dtype=torch.float64)
    return float(total)


def _clipped_loss(
    weights: Sequence[Tensor], specs: Sequence[QSpec], gram: Tensor, scale: Tensor, options: Options, name: str
) -> float:
    """The output error with searched clips, over all layers."""
    scaled = gram / torch.outer(scale, scale)

    def loss(piece: tuple[Tensor, QSpec]) -> float:
        rows, spec = piece
        t = _clipped(rows, spec, options, scaled, scaled, name)
        return _error_sum(t.dequantize().sub_(rows), scaled)

    each = [(w * scale, replace(spec, scale_type="f32")) for w, spec in zip(weights, specs)]
    return sum(side_by_side(loss, [(rows, spec) for weight, spec in each for rows in _parts(weight, spec)]))


def _clipped(weight: Tensor, spec: QSpec, options: Options, gram: Tensor, single: Tensor, name: str) -> QTensor:
    """A weight, or some of its rows, with searched clips; ``single`` is the Gram matrix in float32."""
    ranges = ({options.calibrator: options.calibrator_options, None: None, "minmax": None}).items()
    starts = [rtn.quantize_weight(weight, spec, rtn.Options(*each), name) for each in ranges]
    start = _clip.best_rows(starts, weight, gram, single)
    ratios = [1 - (1 - options.least_clip) * step / max(options.clips - 1, 1) for step in range(options.clips)]
    return _clip.search_clips(start, weight, gram, ratios, options.sweeps, name, single)
