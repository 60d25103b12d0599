"""Clipping weights for the output's sake: each block's range is searched for the least ``tr(D G Dᵀ)``.

AWQ (arXiv 2306.00978, section 3.2 and its released code) clips each group by the error of that group's own share of the
output. Here the errors of the other groups of the row are taken into account, by going through the groups in turn:

    err(d_g) = d_g G_gg d_gᵀ + 2 d_g Σ_{h≠g} G_gh d_hᵀ

so every step lowers the row's whole output error. Rows do not know of each other: a few at a time are searched, on one
thread, all clips of a block at once, so that what is computed stays in the caches and threads need not wait for each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.calibrate.gram import output_error
from fewbit.kernels.side_by_side import side_by_side
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

#: Rows of a piece of work; a fixed number, as the bits of a product may depend on it.
ROWS = 128
_VALUES = 2**18  # of candidates that are held against each other at once: 1 MiB
# Two errors that differ by less than this, as a part of what they add up from, are told apart in float64.
_DOUBTFUL = 1e-4


def has_rows(spec: QSpec) -> bool:
    """Whether each row of a weight has scales of its own."""
    return isinstance(spec.granularity, PerGroup | PerChannel)


def by_rows(solve: Callable[[Tensor], QTensor], weight: Tensor, spec: QSpec) -> QTensor:
    """What ``solve`` makes of a weight ``[out, K]``, a few rows at a time side by side where rows share no scale."""
    if not has_rows(spec) or weight.device.type != "cpu" or len(weight) <= ROWS:
        return solve(weight)
    parts = side_by_side(solve, torch.split(weight, ROWS))
    zero_points = [t.zero_point for t in parts if t.zero_point is not None]
    return replace(
        parts[0],
        codes=torch.cat([t.codes for t in parts]),
        scale=torch.cat([t.scale for t in parts]),
        zero_point=torch.cat(zero_points) if zero_points else None,
        shape=tuple(weight.shape),
    )


def row_errors(t: QTensor, weight: Tensor, gram: Tensor) -> Tensor:
    """float64 ``[out]``: the mean squared change of each output."""
    return output_error(t.dequantize() - weight, gram.to(torch.float64))


def best_rows(candidates: list[QTensor], weight: Tensor, gram: Tensor, single: Tensor | None = None) -> QTensor:
    """The best candidate for each row, or for the whole matrix where rows share a scale; at a tie the first.

    Args:
        candidates: Of one spec.
        weight: float32 ``[out, K]``.
        gram: ``[K, K]``.
        single: The same in float32, if it is at hand.
    """
    if not has_rows(candidates[0].spec):
        errors = torch.stack([row_errors(t, weight, gram) for t in candidates])
        return candidates[int(errors.sum(dim=1).argmin())]
    single = gram.to(torch.float32) if single is None else single
    best, change = candidates[0], candidates[0].dequantize() - weight
    for t in candidates[1:]:
        other = t.dequantize() - weight
        rows = _better(other, change, gram, single)[:, None]
        change = torch.where(rows, other, change)
        best = _mixed(rows, t, best)
    return best


def _better(new: Tensor, old: Tensor, gram: Tensor, single: Tensor) -> Tensor:
    """bool ``[out]``: where ``new G newᵀ < old G oldᵀ``, by one product, ``(new − old) G (new + old)ᵀ``."""
    less, both = new - old, new + old
    parts = (less @ single) * both
    differs, size = parts.sum(dim=1), parts.abs().sum(dim=1)
    better = differs < 0
    doubtful = (differs.abs() <= _DOUBTFUL * size) & (size > 0)
    if bool(doubtful.any()):
        wide = gram.to(torch.float64)
        less, both = less[doubtful].to(torch.float64), both[doubtful].to(torch.float64)
        better[doubtful] = ((less @ wide) * both).sum(dim=1) < 0
    return better


def _mixed(rows: Tensor, one: QTensor, other: QTensor) -> QTensor:
    def pick(mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(rows.reshape(-1, *[1] * (mine.dim() - 1)), mine, theirs)

    zero_point = other.zero_point
    if one.zero_point is not None and zero_point is not None:
        zero_point = pick(one.zero_point, zero_point)
    return replace(other, codes=pick(one.codes, other.codes), scale=pick(one.scale, other.scale), zero_point=zero_point)


def search_clips(
    start: QTensor,
    weight: Tensor,
    gram: Tensor,
    ratios: list[float],
    sweeps: int,
    name: str,
    single: Tensor | None = None,
) -> QTensor:
    """Lower the output error of a quantized weight by choosing each block's clip anew.

    Args:
        start: Where to begin; no row of the result is worse.
        weight: float32 ``[out, K]``.
        gram: ``[K, K]``.
        ratios: Fractions of a block's range.
        sweeps: How often to go through the blocks.
        name: Named in errors.
        single: ``gram`` in float32, if it is at hand.
    """
    spec = start.spec
    if not has_rows(spec):
        return _search_whole(start, weight, gram, ratios, name)
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else weight.shape[1]
    row_spec, single = replace(spec, granularity=PerChannel(0)), gram.to(torch.float32) if single is None else single
    scale, change = start.scale.reshape(weight.shape[0], -1).clone(), start.dequantize() - weight
    zero = None if start.zero_point is None else start.zero_point.reshape(weight.shape[0], -1).clone()
    blocks = [slice(first, first + size) for first in range(0, weight.shape[1], size)]
    tried = [_Clips(weight[:, block].contiguous(), row_spec, ratios, name) for block in blocks]
    for _ in range(sweeps):
        for group, block in enumerate(blocks):
            own = single[block, block].contiguous()
            cross = 2 * (change @ single[:, block] - change[:, block] @ own)
            clips, here = tried[group], change[:, block].contiguous()
            better, best = clips.search(here, own, cross)
            change[:, block] = best.change
            scale[:, group] = torch.where(better, best.scale, scale[:, group])
            if zero is not None and best.zero is not None:
                zero[:, group] = torch.where(better, best.zero, zero[:, group])
    shape = start.scale.shape
    zero_point = None if zero is None else zero.reshape(shape)
    found = affine.quantize(weight, spec, scale=scale.reshape(shape), zero_point=zero_point, name=name)
    return best_rows([start, found], weight, gram, single)


@dataclass(frozen=True)
class _Found:
    """The best clip of one block of every row."""

    change: Tensor
    scale: Tensor
    zero: Tensor | None


class _Clips:
    """All clips of one block of every row: scales and zero points ``[clips, out]``."""

    def __init__(self, weight: Tensor, spec: QSpec, ratios: list[float], name: str) -> None:
        self.weight, self.spec = weight, spec
        lo, hi = torch.aminmax(weight, dim=1)
        fractions = torch.tensor(ratios, dtype=weight.dtype, device=weight.device)[:, None]
        low, high = (fractions * lo).reshape(-1), (fractions * hi).reshape(-1)
        scale, zero = affine.scale_and_zero_point(low, high, spec, name)
        self.scale = scale.reshape(len(ratios), -1)
        self.zero = None if zero is None else zero.reshape(len(ratios), -1)

    def search(self, here: Tensor, own: Tensor, cross: Tensor) -> tuple[Tensor, _Found]:
        """Where a clip is better than the change that is there, and the change, scale and zero point of the best; at a
        tie what is there, then the first."""
        least, change = _errors(here, own, cross), here
        which = torch.full(least.shape, -1, dtype=torch.int64, device=least.device)
        rows = torch.arange(len(here), device=here.device)
        step = max(1, _VALUES // here.numel())
        for first in range(0, len(self.scale), step):
            changes = self._changes(slice(first, first + step))
            error, number = _errors(changes, own, cross).min(dim=0)
            better = error < least
            least, which = torch.where(better, error, least), torch.where(better, number + first, which)
            change = torch.where(better[:, None], changes[number, rows], change)
        chosen = which.clamp(min=0), rows
        zero = None if self.zero is None else self.zero[chosen]
        return which >= 0, _Found(change, self.scale[chosen], zero)

    def _changes(self, some: slice) -> Tensor:
        """``[clips, out, size]``: what some of the clips do to the weights."""
        scale = self.scale[some]
        zero = None if self.zero is None else self.zero[some].reshape(-1)
        values = self.weight.expand(len(scale), *self.weight.shape).reshape(-1, self.weight.shape[1])
        changes = affine.simulate(values, self.spec, scale.reshape(-1), zero).sub_(values)
        return changes.view(len(scale), *self.weight.shape)


def _errors(change: Tensor, own: Tensor, cross: Tensor) -> Tensor:
    """The error ``[…, out]`` of changes ``[…, out, size]``, but for what does not depend on them."""
    product = (change.reshape(-1, change.shape[-1]) @ own).view(change.shape)
    return product.add_(cross).mul_(change).sum(dim=-1)


def _search_whole(start: QTensor, weight: Tensor, gram: Tensor, ratios: list[float], name: str) -> QTensor:
    lo, hi = torch.aminmax(weight)
    found = [start]
    for ratio in ratios:
        scale, zero = affine.scale_and_zero_point(lo * ratio, hi * ratio, start.spec, name)
        found.append(affine.quantize(weight, start.spec, scale=scale, zero_point=zero, name=name))
    return best_rows(found, weight, gram)
