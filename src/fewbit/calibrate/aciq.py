"""ACIQ: the analytic best clip for Gaussian and Laplace data (Banner et al., arXiv 1810.05723).

For 2^b evenly spaced codes over ``[μ − α, μ + α]`` the expected squared error is clipping plus rounding.
Setting its derivative to zero gives α in units of the standard deviation (Gaussian, equations 1 to 5) or of
``E|x − μ|`` (Laplace, equation 11); :mod:`fewbit.numbers.theory` solves both. Only moments are kept, so this
is the cheapest calibrator that clips.

- **Which distribution.** The one whose ``E|x|``, given the measured mean and standard deviation, is nearer
  to the measured ``E|x|`` (for μ = 0: ``sqrt(2/π) σ`` against ``σ/√2``).
- **Symmetric spec.** The codes are symmetric about 0, so μ is 0 and the moments are taken about 0.
- **Asymmetric spec, two-sided data.** The range is ``μ ± α``. For Laplace data ``E|x − μ| = σ/√2`` stands in
  for the mean itself, which would need a second pass.
- **One-sided data** (after ReLU) is the positive half of the distribution. Under an asymmetric spec all
  codes lie on this side: the paper's one-sided α, that of b + 1 bits. All-negative data is mirrored.
- **Exact zeros** of ReLU or pruning cost nothing at any scale, so moments about 0 leave them out; a
  rectified Gaussian then has the standard deviation that it had before.

The range never exceeds the data's. The formulas need an integer format, whose levels are evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.calibrate.moments import Moments
from fewbit.calibrate.range import Range
from fewbit.errors import FewbitError
from fewbit.numbers.granularity import Granularity
from fewbit.numbers.spec import QSpec
from fewbit.numbers.theory import gaussian_clip, laplace_clip


@dataclass(frozen=True)
class Options:
    """ACIQ has nothing to choose."""


def statistic_key(options: Options) -> Hashable:
    """Calibrators of the same key share one statistic."""
    return ("moments",)


def new_statistic(granularity: Granularity, options: Options, name: str = "tensor") -> Moments:
    """An empty statistic."""
    return Moments(granularity, name)


def solve(statistic: Moments, spec: QSpec, options: Options) -> Range:
    """The analytic range of each block.

    Raises:
        FewbitError: The statistic saw no data, or the format is not an integer.
    """
    if not spec.format.is_integer:
        raise FewbitError(
            f"{statistic.name}: aciq's formulas are for the evenly spaced levels of an integer format, "
            f"not {spec.format.name}; use mse or minmax"
        )
    shape = statistic.seen()
    low, high = statistic.low.double(), statistic.high.double()
    if spec.symmetric:
        clip = torch.minimum(_about_zero(statistic, spec.bits, one_sided=False), statistic.amax.double())
        return Range.of(-clip, clip, spec, shape)
    one_sided = (low >= 0) | (high <= 0)
    about_zero, about_mean = (
        _about_zero(statistic, spec.bits, one_sided=True),
        _about_mean(statistic, spec.bits),
    )
    clip, middle = torch.where(one_sided, about_zero, about_mean), torch.where(one_sided, 0.0, statistic.mean)
    return Range.of(torch.maximum(low, middle - clip), torch.minimum(high, middle + clip), spec, shape)


def _about_zero(statistic: Moments, bits: int, one_sided: bool) -> Tensor:
    """α of each block, float64, from the moments of the nonzero values about 0."""
    count = statistic.nonzero.clamp(min=1)
    sigma, magnitude = (statistic.sum_of_squares / count).sqrt(), statistic.magnitude / count
    is_gaussian = _is_gaussian(magnitude, torch.zeros_like(sigma), sigma)
    gaussian, laplace = gaussian_clip(bits, one_sided), laplace_clip(bits, one_sided)
    return torch.where(is_gaussian, gaussian * sigma, laplace * magnitude)


def _about_mean(statistic: Moments, bits: int) -> Tensor:
    """α of each block, float64, from the moments about the mean."""
    sigma = statistic.variance.sqrt()
    is_gaussian = _is_gaussian(statistic.mean_magnitude, statistic.mean, sigma)
    return torch.where(is_gaussian, gaussian_clip(bits) * sigma, laplace_clip(bits) * sigma / math.sqrt(2))


def _is_gaussian(magnitude: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Whether E|x| fits a Gaussian of this mean and deviation better than a Laplace distribution."""
    tiny = torch.finfo(torch.float64).tiny  # a constant block has no deviation
    at, scale = mean.abs(), sigma / math.sqrt(2)
    shift = at / sigma.clamp(min=tiny) / math.sqrt(2)
    folded_normal = sigma * math.sqrt(2 / math.pi) * torch.exp(-shift.square()) + at * torch.erf(shift)
    folded_laplace = at + scale * torch.exp(-at / scale.clamp(min=tiny))
    return (magnitude - folded_normal).abs() <= (magnitude - folded_laplace).abs()
