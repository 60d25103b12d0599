"""KL divergence: the clip that loses least information, as TensorRT published it.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, slides "Entropy Calibration: pseudocode" and
"Candidate distribution Q". The magnitudes are counted in 2048 bins over ``[0, max |x|]``. For each
candidate, the first i bins, i from the number of levels L (128 for int8) up to 2048:

- P, the reference, is those i bins with everything beyond them folded into the last one;
- Q is those i bins without what lies beyond, summed into L levels, each spread evenly again over those of
  its bins where P is not zero;
- both are normalised, the divergence is ``KL(P || Q) = Σ p log(p / q)``, and the clip is ``(i + 0.5) · max
  |x| / 2048`` of the best i, at most ``max |x|``. Of equal divergences the larger clip wins.

What the slides leave open, and what fewbit adds:

- **Levels.** Bin j of i belongs to level ``floor(j L / i)``. L is the number of codes that share the data:
  qmax + 1 for a symmetric spec (2^(b−1); 128 for int8), all ``qmax − qmin + 1`` (2^b) for an asymmetric one.
  Where L exceeds the bins there is no candidate, and nothing is clipped.
- **Smoothing.** Where the outliers were folded into an empty bin, Q may be 0 while P is not. Q is therefore
  mixed with the uniform distribution U over the bins where P is not zero: ``0.9999 Q + 0.0001 U``. A
  candidate whose own bins are all empty is left out.
- **Zeros.** The exact zeros of ReLU and padding cost nothing at any scale and pile up in the bin next to 0;
  its count is replaced by its outer neighbour's, as is common.
- **One-sided data** (after ReLU) under an asymmetric spec: the same search with 2^b levels. All-negative
  data is mirrored.
- **Two-sided data under an asymmetric spec.** Bins of the same width run from min to max. The candidate
  window is ``[max(min, −T), min(max, T)]`` with one T for both sides, 2^b levels cover it, and the outliers
  of each side are folded into its end. With no values on one side this is the one-sided search.

All candidates are evaluated at once from running sums, with one lookup a level. The method needs an integer
format, whose levels are evenly spaced, and more values than a group has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram, statistic_key
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import checked
from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.numbers.granularity import Granularity, PerChannel, PerGroup
from fewbit.numbers.spec import QSpec

__all__ = ["Options", "new_statistic", "solve", "solve_tensor", "statistic_key"]

BINS = 2048
SMOOTHING = 1e-4
_BLOCKS_AT_ONCE = 64


@dataclass(frozen=True)
class Options:
    """How finely the data is counted.

    Attributes:
        bins: Bins of the streaming histogram, from which the 2048 bins are interpolated.
    """

    bins: int = DEFAULT_BINS


def new_statistic(granularity: Granularity, options: Options, name: str = "tensor") -> Histogram:
    """An empty statistic.

    Raises:
        FewbitError: The granularity is per group.
    """
    _refuse_groups(granularity, name)
    return Histogram(granularity, options.bins, name)


def solve(statistic: Histogram, spec: QSpec, options: Options) -> Range:
    """The range of least divergence of each block.

    Raises:
        FewbitError: The statistic saw no data, the spec is per group, or its format is not an integer.
    """
    _refuse_groups(spec.granularity, statistic.name)
    if not spec.format.is_integer:
        raise FewbitError(
            f"{statistic.name}: the entropy calibrator needs the evenly spaced levels of an integer format, "
            f"not {spec.format.name}; use mse or minmax"
        )
    shape = statistic.seen()
    histogram = statistic.coarse(BINS)
    fold = (statistic.high <= 0) | spec.symmetric  # only |x| counts
    histogram[fold, BINS:] += histogram[fold, :BINS].flip(1)
    histogram[fold, :BINS] = 0
    levels = int(spec.qmax) + 1 if spec.symmetric else int(spec.qmax - spec.qmin) + 1
    clip = torch.stack([best_clip(row, levels) for row in histogram]) * statistic.amax.double()
    low, high = statistic.low.double(), statistic.high.double()
    if spec.symmetric:
        low, high = -statistic.amax.double(), statistic.amax.double()
    return Range.of(torch.maximum(low, -clip), torch.minimum(high, clip), spec, shape)


def solve_tensor(x: Tensor, spec: QSpec, options: Options, name: str = "tensor") -> Range:
    """The range of least divergence of a tensor at hand, a few blocks at a time to bound the memory.

    Raises:
        FewbitError: As :func:`solve`; or ``x`` is empty, not floating, or holds NaN or infinity.
    """
    _refuse_groups(spec.granularity, name)
    x = checked(x, name)
    solved = []
    for blocks in torch.split(spec.granularity.to_blocks(x), _BLOCKS_AT_ONCE):
        statistic = new_statistic(PerChannel(0), options, name)
        statistic.update(blocks)
        solved.append(solve(statistic, spec, options))
    lo, hi = torch.cat([r.lo for r in solved]), torch.cat([r.hi for r in solved])
    return Range.of(lo, hi, spec, spec.granularity.scale_shape(tuple(x.shape)))


def best_clip(histogram: Tensor, levels: int) -> Tensor:
    """The clip of least divergence, as a fraction of max |x|: float64, 0-dimensional.

    Args:
        histogram: float64 ``[2 · n]`` counts over ``[-max |x|, max |x|]``, n at least 2.
        levels: Codes that share the window.
    """
    side = len(histogram) // 2
    held = histogram.nonzero().squeeze(1)
    first, last = min(int(held[0]), side), max(int(held[-1]) + 1, side)  # the window always holds 0
    histogram = histogram.clone()
    histogram[side - 1 : side + 1] = histogram[[side - 2, side + 1]]
    reach = torch.arange(1, side + 1)
    start, stop = (side - reach).clamp(min=first), (side + reach).clamp(max=last)
    enough = stop - start >= levels
    if not bool(enough.any()):
        return torch.ones((), dtype=torch.float64)
    start, stop, reach = start[enough], stop[enough], reach[enough]
    found = divergences(histogram, start, stop, levels)
    best = len(found) - 1 - int(found.flip(0).argmin())
    return ((reach[best] + 0.5) / side).clamp(max=1).double()


def divergences(histogram: Tensor, start: Tensor, stop: Tensor, levels: int) -> Tensor:
    """``KL(P || Q)`` of each window ``[start, stop)`` of a histogram.

    Args:
        histogram: float64 ``[bins]`` counts.
        start: int64 ``[windows]`` first bins.
        stop: int64 ``[windows]`` bins after the last; each window has at least ``levels`` bins.
        levels: Levels of Q.

    Returns:
        float64 ``[windows]``; infinite for a window without data.
    """
    return dispatch.kl_divergences(histogram, start, stop, levels, SMOOTHING)


def _refuse_groups(granularity: Granularity, name: str) -> None:
    if isinstance(granularity, PerGroup):
        raise FewbitError(
            f"{name}: a group of {granularity.size} values is too few for the entropy calibrator; "
            "use mse or minmax for groups"
        )
