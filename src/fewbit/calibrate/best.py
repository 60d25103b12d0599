"""The best calibrator of each tensor, by measured error.

The ranges of ``minmax``, ``percentile``, ``outlier``, ``entropy`` and ``mse``, all from one histogram, are the
candidates. Where a pipeline can see the layers that read a tensor, it measures what each candidate does to the outputs
of those layers, ``‖(Q(x) − x) Wᵀ‖²`` on inputs kept from the data (:func:`output_errors`), and takes the least. Where
nothing but the data is known (:func:`solve`, :func:`solve_tensor`; also where a model goes through block after block),
the squared error of the tensor itself decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit import calibrate
from fewbit.calibrate.histogram import DEFAULT_BINS, Histogram, new_statistic, statistic_key
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import Statistic
from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec

__all__ = ["NAMES", "Options", "candidates", "new_statistic", "output_errors", "solve", "solve_tensor", "statistic_key"]

NAMES = ("minmax", "percentile", "outlier", "entropy", "mse")  # the first of equals wins


@dataclass(frozen=True)
class Options:
    """How finely a stream is counted.

    Attributes:
        bins: Bins of the streaming histogram.
    """

    bins: int = DEFAULT_BINS


def candidates(statistic: Statistic, spec: QSpec) -> dict[str, Range]:
    """The range of each calibrator that serves the spec.

    Raises:
        FewbitError: The statistic saw no data.
    """
    statistic.seen()
    found = {}
    for name in NAMES:
        module = calibrate.get(name)
        try:
            found[name] = module.solve(statistic, spec, module.Options())
        except FewbitError:  # a format or granularity that it does not serve
            continue
    return found


def solve(statistic: Histogram, spec: QSpec, options: Options) -> Range:
    """The candidate of least squared error of each block, under the model that values lie at their bin's centre.

    Raises:
        FewbitError: The statistic saw no data.
    """
    from fewbit.calibrate.mse import squared_errors

    ranges = list(candidates(statistic, spec).values())
    flat = [(r.lo.reshape(-1), r.hi.reshape(-1)) for r in ranges]
    lo, hi = flat[0][0].clone(), flat[0][1].clone()
    for block in range(len(lo)):
        values, counts = statistic.centres(block)
        ends = torch.stack([torch.stack([a[block], b[block]]) for a, b in flat])
        x = values.float().expand(len(ends), -1)
        errors = squared_errors(x, ends[:, 0], ends[:, 1], spec, counts.double())
        lo[block], hi[block] = ends[int(errors.argmin())]
    return Range.of(lo, hi, spec, statistic.seen())


def solve_tensor(x: Tensor, spec: QSpec, options: Options, name: str = "tensor") -> Range:
    """The candidate of least squared error of each block of a tensor at hand.

    Raises:
        FewbitError: ``x`` is empty, not floating, or holds NaN or infinity.
    """
    best: Range | None = None
    least = torch.empty(0)
    for calibrator in NAMES:
        try:
            found = calibrate.solve_tensor(calibrator, x, spec, name=name)
        except FewbitError:
            if calibrator == NAMES[0]:
                raise
            continue
        errors = _block_errors(x, found, spec, name)
        if best is None:
            best, least = found, errors
            continue
        better = (errors < least).reshape(best.lo.shape)
        least = torch.minimum(least, errors)
        best = Range(torch.where(better, found.lo, best.lo), torch.where(better, found.hi, best.hi))
    assert best is not None
    return best


def output_errors(rows: Tensor, weight: Tensor, ranges: Mapping[str, Range], spec: QSpec) -> dict[str, float]:
    """What the codes of a layer's input do to its output, relative to the output: ``Σ‖(Q(x) − x) Wᵀ‖² / Σ‖x Wᵀ‖²``.

    Args:
        rows: Inputs as the weight sees them, float32 ``[groups, n, K]``.
        weight: float32 ``[groups, out, K]``.
        ranges: Candidates for the whole input, by name.
        spec: Per tensor.
    """
    by_weight = weight.transpose(1, 2)
    energy = max(float((rows @ by_weight).square().sum()), 1e-30)
    found = {}
    for name, bounds in ranges.items():
        scale, zero_point = affine.scale_and_zero_point(bounds.lo, bounds.hi, spec)
        change = affine.fake_quantize(rows, spec, scale=scale, zero_point=zero_point) - rows
        found[name] = float((change @ by_weight).square().sum()) / energy
    return found


def _block_errors(x: Tensor, bounds: Range, spec: QSpec, name: str) -> Tensor:
    """Squared error of each block, float64 ``[blocks]``; infinite where the scale cannot be used."""
    try:
        scale, zero_point = affine.scale_and_zero_point(bounds.lo, bounds.hi, spec, name)
        difference = affine.fake_quantize(x.float(), spec, scale=scale, zero_point=zero_point) - x.float()
    except FewbitError:
        return torch.full((bounds.lo.numel(),), torch.inf, dtype=torch.float64)
    return spec.granularity.to_blocks(difference).double().square().sum(1)
