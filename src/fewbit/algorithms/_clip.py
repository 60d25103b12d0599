"""Clipping weights for the output's sake: each block's range is searched for the least ``tr(D G Dᵀ)``.

AWQ (arXiv 2306.00978, section 3.2 and its released code) clips each group by the error of that group's own share of the
output. Here the errors of the other groups of the row are taken into account, by going through the groups in turn:

    err(d_g) = d_g G_gg d_gᵀ + 2 d_g Σ_{h≠g} G_gh d_hᵀ

so every step lowers the row's whole output error.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewbit.calibrate.gram import output_error
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec


def row_errors(t: QTensor, weight: Tensor, gram: Tensor) -> Tensor:
    """float64 ``[out]``: the mean squared change of each output."""
    return output_error(t.dequantize() - weight, gram.to(torch.float64))


def best_rows(candidates: list[QTensor], weight: Tensor, gram: Tensor) -> QTensor:
    """The best candidate for each row, or for the whole matrix where rows share a scale; at a tie the first."""
    errors = torch.stack([row_errors(t, weight, gram) for t in candidates])
    if not isinstance(candidates[0].spec.granularity, PerGroup | PerChannel):
        return candidates[int(errors.sum(dim=1).argmin())]
    best = errors.argmin(dim=0)
    rows = torch.arange(weight.shape[0], device=best.device)

    def pick(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts)[best, rows]

    first = candidates[0]
    zero_points = [t.zero_point for t in candidates if t.zero_point is not None]
    return replace(
        first,
        codes=pick([t.codes for t in candidates]),
        scale=pick([t.scale for t in candidates]),
        zero_point=pick(zero_points) if zero_points else None,
    )


def search_clips(start: QTensor, weight: Tensor, gram: Tensor, ratios: list[float], sweeps: int, name: str) -> QTensor:
    """Lower the output error of a quantized weight by choosing each block's clip anew.

    Args:
        start: Where to begin; no row of the result is worse.
        weight: float32 ``[out, K]``.
        gram: ``[K, K]``.
        ratios: Fractions of a block's range.
        sweeps: How often to go through the blocks.
        name: Named in errors.
    """
    spec = start.spec
    if not isinstance(spec.granularity, PerGroup | PerChannel):
        return _search_whole(start, weight, gram, ratios, name)
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else weight.shape[1]
    row_spec, single = replace(spec, granularity=PerChannel(0)), gram.to(torch.float32)
    scale, change = start.scale.reshape(weight.shape[0], -1).clone(), start.dequantize() - weight
    zero = None if start.zero_point is None else start.zero_point.reshape(weight.shape[0], -1).clone()
    for _ in range(sweeps):
        for group, first in enumerate(range(0, weight.shape[1], size)):
            block = slice(first, first + size)
            own = single[block, block]
            cross = 2 * (change @ single[:, block] - change[:, block] @ own)
            here = (scale[:, group], None if zero is None else zero[:, group])
            best = _Best(weight[:, block], change[:, block], own, cross, here)
            for pair in _candidates(weight[:, block], row_spec, ratios, name):
                best.offer(row_spec, *pair)
            change[:, block] = best.change
            scale[:, group] = best.scale
            if zero is not None and best.zero is not None:
                zero[:, group] = best.zero
    shape = start.scale.shape
    zero_point = None if zero is None else zero.reshape(shape)
    found = affine.quantize(weight, spec, scale=scale.reshape(shape), zero_point=zero_point, name=name)
    return best_rows([start, found], weight, gram)


class _Best:
    """The best clip of one block of every row so far."""

    def __init__(
        self, weight: Tensor, change: Tensor, own: Tensor, cross: Tensor, here: tuple[Tensor, Tensor | None]
    ) -> None:
        self.weight, self.own, self.cross = weight.contiguous(), own, cross
        self.change, (self.scale, self.zero) = change.clone(), here
        self.error = self._error(self.change)

    def offer(self, spec: QSpec, scale: Tensor, zero: Tensor | None) -> None:
        """Take a candidate where it is better."""
        change = affine.simulate(self.weight, spec, scale, zero) - self.weight
        error = self._error(change)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.change = torch.where(better[:, None], change, self.change)
        self.scale = torch.where(better, scale, self.scale)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)

    def _error(self, change: Tensor) -> Tensor:
        return ((change @ self.own + self.cross) * change).sum(dim=1)


def _candidates(block: Tensor, spec: QSpec, ratios: list[float], name: str) -> list[tuple[Tensor, Tensor | None]]:
    """Scale and zero point of each row at each fraction of its range."""
    lo, hi = torch.aminmax(block, dim=1)
    return [affine.scale_and_zero_point(lo * ratio, hi * ratio, spec, name) for ratio in ratios]


def _search_whole(start: QTensor, weight: Tensor, gram: Tensor, ratios: list[float], name: str) -> QTensor:
    lo, hi = torch.aminmax(weight)
    found = [start]
    for ratio in ratios:
        scale, zero = affine.scale_and_zero_point(lo * ratio, hi * ratio, start.spec, name)
        found.append(affine.quantize(weight, start.spec, scale=scale, zero_point=zero, name=name))
    return best_rows(found, weight, gram)
