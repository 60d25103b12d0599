"""Codes chosen one column after another, each making up for the ones before: the inner loops of GPTQ.

Both loops lower ``d G dᵀ``, the output error of a row's change ``d = w − s(q − z)`` (:mod:`fewbit.calibrate.gram`), on
the compiled kernels (``csrc/gptq.h``) where they fit and on the twins here, which give the same bits, where not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.kernels import dispatch

Rounding = Callable[[Tensor, Tensor], Tensor]
"""From wanted values in units of the scale, and zero points, to values of the grid less the zero point."""


@dataclass(frozen=True)
class Plane:
    """What :func:`nearest_plane` found for each row.

    Attributes:
        codes: ``[R, C]``: int32, or values of a grid that is not of integers.
        change: ``w − ŵ`` float32 ``[R, C]``.
        error: float32 ``[R]``, what these columns add to ``d G dᵀ``.
        best: int32 ``[R]``, which candidate it was.
    """

    codes: Tensor
    change: Tensor
    error: Tensor
    best: Tensor


def nearest_plane(
    weight: Tensor, carry: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bounds: tuple[int, int], by_column: bool
) -> Plane:
    """Round columns in order; each makes up for the ones before (arXiv 2210.17323, as in arXiv 2507.18553).

    With ``G = R Rᵀ`` the error is the sum of squares of ``d R``; column j of it is settled by ``d_0 … d_j``, and the
    code of column j is the nearest to ``w_j + carry_j / R_jj``.

    Args:
        weight: float32 ``[R, C]``.
        carry: float32 ``[R, C]``, ``Σ d_i R_ij`` over columns before these.
        factor: float32 ``[C, C]``, these columns of R.
        scale: float32 ``[R, T]``, candidates of which each row takes the best; or ``[R, C]``, one a column.
        zero: Whole numbers, of the scale's shape.
        bounds: qmin and qmax.
        by_column: Which of the two the scales are.
    """
    tensors = (weight, carry, factor, scale, zero)
    native = dispatch.native_for(*tensors)
    if native is None or any(t.dtype != torch.float32 for t in tensors) or weight.numel() == 0:
        found = nearest_plane_reference(weight, carry, factor, scale, zero, integers(*bounds), by_column)
        return replace(found, codes=found.codes.to(torch.int32))
    rows = weight.shape[0]
    codes, best = torch.empty(weight.shape, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
    change, error = torch.empty(weight.shape), torch.empty(rows)
    native.nearest_plane(*tensors, by_column, *bounds, codes, change, error, best)
    return Plane(codes, change, error, best)


def weigh(
    weight: Tensor,
    carry: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    bounds: tuple[int, int],
    power: int = 2,
) -> Tensor:
    """The error of each candidate, float32 ``[R, T]``, as if no column made up for another: what
    :func:`nearest_plane` would find at a fraction of its cost, good enough to choose whom to show it.

    ``power`` (2, 3 or 4) is what the magnitudes of ``(w + carry_j / R_jj − ŵ) R_jj`` are raised to and then summed.
    """
    tensors = (weight, carry, factor, scale, zero)
    native = dispatch.native_for(*tensors)
    if native is None or any(t.dtype != torch.float32 for t in tensors) or weight.numel() == 0:
        return weigh_reference(weight, carry, factor, scale, zero, integers(*bounds), power)
    error = torch.empty(scale.shape)
    native.weigh(*tensors, *bounds, power, error)
    return error


def weigh_reference(
    weight: Tensor,
    carry: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    rounding: Rounding,
    power: int = 2,
) -> Tensor:
    """The twin of the kernel, for any grid."""
    error = torch.zeros_like(scale)
    for j in range(weight.shape[1]):
        wanted = (weight[:, j] + carry[:, j] * (1 / factor[j, j]))[:, None]
        left = (wanted - scale * rounding(wanted * (1 / scale), zero)) * factor[j, j]
        square = left * left
        error += square if power == 2 else square * (left.abs() if power == 3 else square)
    return error


def integers(qmin: int, qmax: int) -> Rounding:
    """The grid of the whole numbers from qmin to qmax."""
    return lambda wanted, zero: torch.minimum(torch.maximum(wanted, qmin - zero), qmax - zero).round()


def nearest_plane_reference(
    weight: Tensor, carry: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, rounding: Rounding, by_column: bool
) -> Plane:
    """The twin of the kernel, for any grid: ``rounding`` goes to its nearest value, and codes are values of it."""
    rows, columns = weight.shape
    candidates = 1 if by_column else scale.shape[1]
    # One problem for each row and candidate.
    spread = [t.repeat_interleave(candidates, dim=0) for t in (weight, carry)]
    problems, left = spread[0], spread[1].clone()
    codes, change = torch.empty_like(problems), torch.empty_like(problems)
    error = torch.zeros(problems.shape[0], dtype=weight.dtype, device=weight.device)
    for j in range(columns):
        s, z = (t[:, j] if by_column else t.reshape(-1) for t in (scale, zero))
        diagonal = factor[j, j]
        wanted = problems[:, j] + left[:, j] * (1 / diagonal)
        grid = rounding(wanted * (1 / s), z)
        codes[:, j] = grid + z
        change[:, j] = problems[:, j] - s * grid
        error += (left[:, j] + change[:, j] * diagonal).square()
        left[:, j + 1 :] += change[:, j, None] * factor[j, j + 1 :]
    best = error.reshape(rows, candidates).argmin(dim=1)
    at = torch.arange(rows, device=weight.device) * candidates + best
    return Plane(codes[at], change[at], error[at], best.to(torch.int32))


def descend(
    gram: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: int,
    bounds: tuple[int, int],
    codes: Tensor,
    gradient: Tensor,
    sweeps: int,
) -> None:
    """Move each code to where it lowers its row's error, column after column, until a sweep changes nothing.

    Coordinate descent on ``d G dᵀ`` (QuantEase, arXiv 2309.01885): the best value of ``d_j`` with all others fixed is
    ``d_j − (d G)_j / G_jj``.

    Args:
        gram: float32 ``[C, C]``, symmetric.
        scale: float32 ``[R, ceil(C / group)]``.
        zero: Whole numbers, of the scale's shape.
        group: Columns of one scale.
        bounds: qmin and qmax.
        codes: int32 ``[R, C]``, changed in place.
        gradient: float32 ``[R, C]``, ``d G``, kept up to date in place.
        sweeps: At most so many.
    """
    native = dispatch.native_for(gram, scale, zero, codes, gradient)
    floats = (gram, scale, zero, gradient)
    if native is None or any(t.dtype != torch.float32 for t in floats) or codes.numel() == 0:
        descend_reference(gram, scale, zero, group, bounds, codes, gradient, sweeps)
    else:
        native.descend(gram, scale, zero, group, *bounds, sweeps, codes, gradient)


def descend_reference(
    gram: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: int,
    bounds: tuple[int, int],
    codes: Tensor,
    gradient: Tensor,
    sweeps: int,
) -> None:
    """The twin of the kernel, all rows at once."""
    for _ in range(sweeps):
        before = codes.clone()
        for j in range(codes.shape[1]):
            diagonal, s, z = gram[j, j], scale[:, j // group], zero[:, j // group]
            if not float(diagonal) > 0:
                continue
            q = codes[:, j].to(gram.dtype) - z
            wanted = q + gradient[:, j] / (diagonal * s)
            step = torch.minimum(torch.maximum(wanted, bounds[0] - z), bounds[1] - z).round() - q
            by = s * step
            by = torch.where(by * (by * diagonal - 2 * gradient[:, j]) < 0, by, 0)
            codes[:, j] += torch.where(by == 0, 0, step).to(torch.int32)
            gradient -= by[:, None] * gram[j]
        if torch.equal(before, codes):
            break
