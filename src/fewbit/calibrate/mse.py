"""MSE: the clip with the least squared error of quantizing, by searching a grid.

Rounding error grows with the clip and clipping error falls, so that the best clip of data with tails lies
inside its range. Each candidate is quantized with the scale and zero point it would really get, in any
format. Min-max is always among the candidates, so that the result is never worse than min-max on the data of
the search.

**From a stream** the data is the histogram: a bin stands for its count of values at its centre (pulled into
the exact extremes), at most ``max |x| / 8192`` away from each of them. The clip is searched over fractions
``2^-k`` of the range, first coarsely over seven octaves, then around the best in steps of 2^(1/64), 1.1%. A
symmetric spec has one clip; an asymmetric one has a grid over both ends, which are then refined in turn.

**For data at hand** each block's own values are quantized, with both ends at one of 80 fractions of the
range: 1 down to 1/4 in steps of 1/80, from there to 1/50 by a factor (formats that are not integers: 1/10 …
10/10, then in steps down to 1/80 around the best). Under an asymmetric spec each end then moves by itself
while that helps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram, new_statistic, statistic_key
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import checked, dense_parts, extremes, tiles
from fewbit.kernels import dispatch
from fewbit.numbers.affine import fake_quantize, scale_and_zero_point
from fewbit.numbers.granularity import PerChannel
from fewbit.numbers.spec import QSpec

__all__ = ["Options", "new_statistic", "solve", "solve_tensor", "squared_errors", "statistic_key"]

_LINEAR, _GEOMETRIC = 80, 0.875  # 1 … 1/4 in 80ths, from there to 1/50 by this factor: 80 candidates
_COARSE_FRACTIONS = 10
_OCTAVES = 7  # the smallest clip from a stream is max |x| / 128, 32 to 64 bins
_COARSE, _COARSE_BOTH_ENDS, _FINE = 1 / 8, 1 / 2, 1 / 64
_MOVES = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5)
_ROUNDS, _WORTH_ANOTHER = 3, 0.99  # a row whose error fell by 1% is tried again
_COARSE_VALUES = 1024  # the coarse search looks at no more values than this
_AT_ONCE = 1 << 17  # values quantized at a time: the temporaries stay in the cache
_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Options:
    """How finely a stream is counted.

    Attributes:
        bins: Bins of the streaming histogram.
    """

    bins: int = DEFAULT_BINS


def solve(statistic: Histogram, spec: QSpec, options: Options) -> Range:
    """The range of least squared error of each block, under the model that values lie at their bin's centre.

    Raises:
        FewbitError: The statistic saw no data.
    """
    shape = statistic.seen()
    base = Range.of(statistic.low, statistic.high, spec)
    lo, hi = base.lo.clone(), base.hi.clone()
    for block in _usable(base.lo, base.hi, spec).nonzero().squeeze(1).tolist():
        values, counts = statistic.centres(block)
        lo[block], hi[block] = _search(values.float(), counts.double(), base.lo[block], base.hi[block], spec)
    return Range.of(lo, hi, spec, shape)


def solve_tensor(x: Tensor, spec: QSpec, options: Options, name: str = "tensor") -> Range:
    """The range of least squared error of each block of a tensor at hand.

    Args:
        x: Floating tensor of any shape.
        spec: The quantization, of any format.
        options: Unused, as no histogram is made.
        name: Named in errors.

    Raises:
        FewbitError: ``x`` is empty, not floating, or holds NaN or infinity.
    """
    x = checked(x, name)
    shape = spec.granularity.scale_shape(tuple(x.shape))
    lo = torch.empty(torch.Size(shape).numel())
    hi = torch.empty_like(lo)
    for rows, values in dense_parts(x, spec.granularity):
        base = Range.of(*extremes(values, name), spec)
        usable = _usable(base.lo, base.hi, spec)
        part_lo, part_hi = base.lo.clone(), base.hi.clone()
        if bool(usable.any()):
            kept = values if bool(usable.all()) else values[usable]
            part_lo[usable], part_hi[usable] = _search_rows(kept, base.lo[usable], base.hi[usable], spec)
        lo[rows], hi[rows] = part_lo, part_hi
    return Range.of(lo, hi, spec, shape)


def squared_errors(x: Tensor, lo: Tensor, hi: Tensor, spec: QSpec, weights: Tensor | None = None) -> Tensor:
    """``Σ w (x − x̂)²`` of each row when it is quantized over its range.

    Args:
        x: Floating ``[rows, n]``.
        lo: Lower ends ``[rows]``.
        hi: Upper ends ``[rows]``.
        spec: Format and symmetry; the granularity is the row.
        weights: float64 ``[n]`` or None for 1.

    Returns:
        float64 ``[rows]``; infinite where the scale would be subnormal or overflow.
    """
    by_row = replace(spec, granularity=PerChannel(0))
    usable = _usable(lo, hi, spec)
    scale, zero_point = scale_and_zero_point(lo * usable, hi * usable, by_row)
    errors = torch.zeros(len(x), dtype=torch.float64)
    for rows, columns in tiles(x, _AT_ONCE):
        tile = x[rows, columns].float()
        zeros = None if zero_point is None else zero_point[rows]
        squares = (_round_trip(tile, by_row, scale[rows], zeros) - tile).double().square_()
        errors[rows] += squares.sum(1) if weights is None else squares @ weights[columns]
    return errors.masked_fill_(~usable, torch.inf)


def _round_trip(x: Tensor, by_row: QSpec, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Quantize and dequantize rows whose scales are known to be good; integers without the affine map's checks."""
    if not by_row.format.is_integer:
        return fake_quantize(x, by_row, scale=scale, zero_point=zero_point)
    step = scale[:, None]
    zeros = torch.zeros(1, 1) if zero_point is None else zero_point[:, None].float()
    return (x / step).round_().add_(zeros).clamp_(by_row.qmin, by_row.qmax).sub_(zeros).mul_(step)


def _usable(lo: Tensor, hi: Tensor, spec: QSpec) -> Tensor:
    """Whether the range of each block is 0 or has a normal float32 scale."""
    lo, hi = lo.double(), hi.double()
    if spec.symmetric:
        scale = torch.maximum(lo.abs(), hi.abs()) / (spec.qmax if spec.qmax > 0 else -spec.qmin)
    else:
        scale = (hi - lo) / (spec.qmax - spec.qmin)
    return (scale == 0) | ((scale >= _FLOAT32.tiny) & (scale <= _FLOAT32.max))


def _search(values: Tensor, counts: Tensor, lo: Tensor, hi: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """Coarse to fine over the ends of one block; ``octaves [candidates, 2]`` are log2 of their fractions."""
    ends = torch.stack([lo, hi])

    def best_of(octaves: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, float]:
        clips = ends * torch.exp2(octaves)
        errors = squared_errors(at.expand(len(clips), -1), clips[:, 0], clips[:, 1], spec, weight)
        index = int(errors.argmin())
        return octaves[index], float(errors[index])

    step = _COARSE if spec.symmetric else _COARSE_BOTH_ENDS
    grid = _coarse_grid(step, spec.symmetric, bool(lo < 0), bool(hi > 0))
    start, _ = best_of(grid, *_thinned(values, counts))
    at, least = best_of(torch.stack([grid[0], start]), values, counts)
    line = torch.arange(-step, step + _FINE, _FINE).unsqueeze(1)
    for direction in [(1.0, 1.0)] if spec.symmetric else 2 * [(0.0, 1.0), (1.0, 0.0)]:
        there, error = best_of((at + line * torch.tensor(direction)).clamp(max=0), values, counts)
        at, least = (there, error) if error < least else (at, least)
    lo, hi = ends * torch.exp2(at)
    return lo, hi


def _thinned(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The same data in at most ``_COARSE_VALUES`` values: neighbours become one at their mean."""
    each = -(-len(values) // _COARSE_VALUES)
    if each == 1:
        return values, counts
    missing = -len(values) % each
    weight = torch.nn.functional.pad(counts, (0, missing)).reshape(-1, each)
    at = torch.nn.functional.pad(values.double(), (0, missing)).reshape(-1, each)
    total = weight.sum(1)
    return ((at * weight).sum(1) / total).float(), total


def _coarse_grid(step: float, tied: bool, below: bool, above: bool) -> Tensor:
    """Starting candidates ``[candidates, 2]``, min-max first; an end without values stays where it is."""
    octaves = -step * torch.arange(_OCTAVES / step + 1)
    if tied:
        return torch.stack([octaves, octaves], dim=1)
    return torch.cartesian_prod(octaves if below else octaves[:1], octaves if above else octaves[:1])


def _search_rows(values: Tensor, lo: Tensor, hi: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """Both ends of each row ``[rows, n]`` by one fraction, then, if asymmetric, each by itself."""
    if spec.format.is_integer:
        best_lo, best_hi = dispatch.mse_search_rows(values, _fractions(), spec)
    else:
        best_lo, best_hi = _search_fractions(values, lo, hi, spec)
    if spec.symmetric:
        return best_lo, best_hi
    if spec.format.is_integer:
        moves = torch.tensor(_MOVES)
        return dispatch.refine_clip_rows(values, moves, _ROUNDS, _WORTH_ANOTHER, spec, best_lo, best_hi)
    return _move_apart(values, lo, hi, best_lo, best_hi, spec)


def _fractions() -> Tensor:
    """Fractions of the range, falling, as the first of equals wins and the larger clip should."""
    linear = torch.arange(_LINEAR, _LINEAR // 4 - 1, -1) / _LINEAR
    return torch.cat([linear, 0.25 * _GEOMETRIC ** torch.arange(1.0, 20.0)])


def _search_fractions(values: Tensor, lo: Tensor, hi: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """The best fraction of each row's range, coarse to fine."""
    best = torch.ones(len(values))
    least = squared_errors(values, lo, hi, spec)

    def consider(fractions: Tensor) -> None:
        nonlocal best, least
        errors = squared_errors(values, lo * fractions, hi * fractions, spec)
        best, least = torch.where(errors < least, fractions, best), torch.minimum(errors, least)

    for tenths in range(_COARSE_FRACTIONS - 1, 0, -1):
        consider(torch.full_like(best, tenths / _COARSE_FRACTIONS))
    step = 1 / _COARSE_FRACTIONS
    while step > 1 / _LINEAR:
        step /= 2
        coarse = best
        consider((coarse + step).clamp(max=1))
        consider(coarse - step)
    return lo * best, hi * best


def _move_apart(
    values: Tensor, lo: Tensor, hi: Tensor, best_lo: Tensor, best_hi: Tensor, spec: QSpec
) -> tuple[Tensor, Tensor]:
    """Move the two ends of each row, each by itself, within its range ``[lo, hi]`` for as long as it pays."""
    best_lo, best_hi = best_lo.clone(), best_hi.clone()
    least = squared_errors(values, best_lo, best_hi, spec)
    rows = torch.arange(len(values))
    for _ in range(_ROUNDS):
        part = values if len(rows) == len(values) else values[rows]
        before = least[rows]
        moved = _moved(part, lo[rows], hi[rows], best_lo[rows], best_hi[rows], before, spec)
        best_lo[rows], best_hi[rows], least[rows] = moved
        rows = rows[least[rows] < _WORTH_ANOTHER * before]
        if not len(rows):
            break
    return best_lo, best_hi


def _moved(
    values: Tensor, lo: Tensor, hi: Tensor, at_lo: Tensor, at_hi: Tensor, least: Tensor, spec: QSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: the best move of the lower end, then of the upper; gives both ends and the error left."""
    for lower in (True, False):
        from_lo, from_hi = at_lo, at_hi
        for move in _MOVES:
            to_lo = torch.maximum(from_lo * move, lo) if lower else from_lo
            to_hi = from_hi if lower else torch.minimum(from_hi * move, hi)
            errors = squared_errors(values, to_lo, to_hi, spec)
            better = errors < least
            least = torch.where(better, errors, least)
            at_lo, at_hi = torch.where(better, to_lo, at_lo), torch.where(better, to_hi, at_hi)
    return at_lo, at_hi, least
