"""Rounding a weight column after column against the Gram matrix of its input: what GPTQ and its relatives share.

All of it lowers ``tr(D G Dᵀ)``, D the change of the weight. With ``G = R Rᵀ``, R upper triangular, that is ``‖D R‖²``,
whose column j is settled by the codes of columns 0 … j (:func:`fewbit.kernels.solver.nearest_plane`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import solver
from fewbit.kernels.pages import on_huge_pages
from fewbit.kernels.side_by_side import kept_pool
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor, PerToken
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.scale_type import round_scale
from fewbit.numbers.spec import QSpec

_LARGEST_DAMPING = 1e3
_PANEL = 256  # columns of a Gram matrix that are factorized, and copied, at a time
# The smallest share of its range that a block may be clipped to, by bits; rounding is finer with more, clipping is not.
_SMALLEST_CLIP = {1: 0.2, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.7, 6: 0.8}


@dataclass(frozen=True)
class Rounded:
    """A weight in codes; columns may be in any order.

    Attributes:
        codes: Grid values ``[out, K]``: int32, or float32 for a grid that is not of integers.
        scale: float32 ``[out, G]``.
        zero: Whole or grid numbers in float32 ``[out, G]``.
        change: float32 ``[out, K]``, weight − its dequantized value.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    change: Tensor


def group_size(spec: QSpec, columns: int, name: str) -> int:
    """Columns that share a scale within a row.

    Raises:
        FewbitError: Rows share scales that columns do not.
    """
    grain = spec.granularity
    if isinstance(grain, PerGroup):
        return grain.size
    if isinstance(grain, PerTensor | PerToken) or grain == PerChannel(0):
        return columns
    raise FewbitError(f"{name}: {spec} has scales by column; quantize per tensor, channel (axis 0) or group")


def factorize(gram: Tensor, damping: float, name: str, columns: Tensor | None = None) -> Tensor:
    """R, upper triangular and float32, with ``R Rᵀ = G + λ I``, λ = damping · mean(diag G).

    Where G is too close to singular for that, λ grows tenfold until it is not (GPTQ, arXiv 2210.17323, section 3.3).

    Args:
        gram: G ``[K, K]``.
        damping: λ in units of the diagonal's mean.
        name: Named in errors.
        columns: An order of rows and columns that G is brought into first.

    Raises:
        FewbitError: Even a large λ does not help, so G is not finite.
    """
    mean = gram.diagonal().mean()
    mean = torch.where(mean > 0, mean, 1.0)
    backwards = (torch.arange(len(gram), device=gram.device) if columns is None else columns).flip(0)
    while damping <= _LARGEST_DAMPING:
        # Wide layers have matrices of half a gigabyte: as few as possible are in memory together.
        lower = _ordered(gram, backwards)
        lower.diagonal().add_(damping * mean)
        if _cholesky(lower):
            return _turned(lower.to(torch.float32))
        del lower
        damping = max(damping * 10, 1e-6)
    raise FewbitError(f"{name}: the statistics of its input are not finite; look at the calibration data")


def _turned(matrix: Tensor) -> Tensor:
    """A square matrix with its rows and columns in the reverse order, in place."""
    half = len(matrix) // 2
    for start in range(0, half, _PANEL):
        stop = min(start + _PANEL, half)
        top, bottom = slice(start, stop), slice(len(matrix) - stop, len(matrix) - start)
        above = matrix[top].flip(0, 1)
        matrix[top] = matrix[bottom].flip(0, 1)
        matrix[bottom] = above
    if len(matrix) % 2:
        matrix[half] = matrix[half].flip(0)
    return matrix


def _ordered(matrix: Tensor, columns: Tensor) -> Tensor:
    """The lower half of a matrix with its rows and columns in another order; above it lies anything."""
    ordered = on_huge_pages(torch.empty_like(matrix))
    for start in range(0, len(columns), _PANEL):
        here, before = slice(start, start + _PANEL), slice(start + _PANEL)
        ordered[here, before] = matrix[columns[here, None], columns[before]]
    return ordered


def _cholesky(matrix: Tensor) -> bool:
    """The lower factor in place of a matrix, block by block; whether there is one.

    Each product on one thread: a library's bits depend on how many there are, and ours must not. Products that do not
    meet go side by side.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _cholesky_in_place(matrix, kept_pool(threads))
    finally:
        torch.set_num_threads(threads)


def _cholesky_in_place(matrix: Tensor, workers: Executor) -> bool:
    size = len(matrix)
    for start in range(0, size, _PANEL):
        stop = min(start + _PANEL, size)
        lower, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if bool(failed) or not bool((lower.diagonal() > 0).all()):
            return False
        matrix[start:stop, start:stop] = lower
        places = range(stop, size, _PANEL)
        solved = list(workers.map(partial(_solve_below, matrix, lower, start), places))
        below = torch.cat(solved) if solved else matrix[stop:, start:stop]
        list(workers.map(partial(_take_out, matrix, below, stop), places))
    matrix.tril_()
    return True


def _solve_below(matrix: Tensor, lower: Tensor, start: int, place: int) -> Tensor:
    """Rows of the factor under a block on the diagonal."""
    rows, columns = slice(place, place + _PANEL), slice(start, start + len(lower))
    solved: Tensor = torch.linalg.solve_triangular(lower, matrix[rows, columns].T, upper=False).T.contiguous()
    matrix[rows, columns] = solved
    return solved


def _take_out(matrix: Tensor, below: Tensor, stop: int, left: int) -> None:
    """What columns of the factor, from row ``stop`` on in ``below``, leave of some later columns."""
    right, skipped = min(left + _PANEL, len(matrix)), left - stop
    matrix[left:, left:right].addmm_(below[skipped:], below[skipped : right - stop].T, alpha=-1)


def column_order(energy: Tensor, group: int, order: str) -> Tensor:
    """Which column is rounded when: those with the largest inputs first, as they have most to lose.

    Args:
        energy: ``[K]``, the diagonal of G.
        group: Columns of one scale.
        order: ``"given"``, ``"groups"`` (groups by their energy, columns by theirs within each, so that each group is
            still rounded in one go and its scale can follow what earlier ones left) or ``"columns"``.
    """
    columns = torch.arange(energy.numel(), device=energy.device)
    if order == "given":
        return columns
    if order == "columns":
        return energy.argsort(descending=True, stable=True)
    padded = torch.nn.functional.pad(energy, (0, -energy.numel() % group)).reshape(-1, group)
    groups = padded.sum(dim=1).argsort(descending=True, stable=True)
    within = (
        padded.argsort(dim=1, descending=True, stable=True)
        + torch.arange(len(padded), device=energy.device)[:, None] * group
    )
    flat = within[groups].reshape(-1)
    return flat[flat < energy.numel()]


def candidates(low: Tensor, high: Tensor, spec: QSpec, count: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points to try for blocks with the ranges ``low [R]`` to ``high [R]``: ``[R, T]``, float32.

    Each end of the range is clipped to ``count`` shares of itself; on asymmetric grids each with each. The first is the
    whole range.
    """
    shares = torch.linspace(1.0, _SMALLEST_CLIP.get(spec.bits, 0.9), count, device=low.device)
    steps = spec.qmax - spec.qmin
    if spec.symmetric:
        reach = torch.maximum(low.neg(), high).clamp(min=0)[:, None] * shares
        scale = reach / (spec.qmax if spec.qmax > 0 else -spec.qmin)
        return usable(scale, spec), torch.zeros_like(scale)
    pairs = torch.cartesian_prod(shares, shares)
    low, high = (end[:, None] * pairs[:, i] for i, end in enumerate((low.clamp(max=0), high.clamp(min=0))))
    scale = usable((high - low) / steps, spec)
    zero = spec.format.round(spec.qmin - low / scale).clamp(spec.qmin, spec.qmax)
    return scale, torch.where(high > low, zero, 0.0)


def usable(scale: Tensor, spec: QSpec) -> Tensor:
    """Scales as positive normal numbers of the spec's scale type; 1 where they would be 0, as in blocks of zeros."""
    smallest = torch.finfo(torch.float32).tiny
    return round_scale(torch.where(scale > smallest, scale, 1.0).to(torch.float32), spec).contiguous()


def round_blocks(weight: Tensor, factor: Tensor, spec: QSpec, group: int, count: int, finalists: int) -> Rounded:
    """Round group after group; each group's scale is the one that leaves least, given what the groups before left.

    Args:
        weight: float32 ``[out, K]``.
        factor: R of :func:`factorize`.
        spec: The quantization.
        group: Columns of one scale; K must be a multiple.
        count: See :func:`candidates`.
        finalists: How many candidates are tried in full; the others are judged by :func:`fewbit.kernels.solver.weigh`.
    """
    parts = []
    change = torch.empty_like(weight)
    for start in range(0, weight.shape[1], group):
        here = slice(start, start + group)
        own, w = factor[here, here].contiguous(), weight[:, here].contiguous()
        carry = change[:, :start] @ factor[:start, here]
        wanted = w + carry / own.diagonal()
        scale, zero = candidates(wanted.amin(dim=1), wanted.amax(dim=1), spec, count)
        scale, zero = _preselect(w, carry, own, scale, zero, spec, finalists)
        found = _plane(w, carry, own, scale, zero, spec, by_column=False)
        best = found.best.to(torch.int64)[:, None]
        change[:, here] = found.change
        parts.append((found.codes, scale.gather(1, best), zero.gather(1, best)))
    codes, scales, zeros = (torch.cat(part, dim=1) for part in zip(*parts))
    return Rounded(codes, scales, zeros, change)


def round_columns(
    weight: Tensor, factor: Tensor, spec: QSpec, scale: Tensor, zero: Tensor, group_of: Tensor, block: int
) -> Rounded:
    """Round column after column under given scales ``[out, G]``; ``group_of [K]`` says which is a column's."""
    change, codes = torch.empty_like(weight), []
    for start in range(0, weight.shape[1], block):
        here = slice(start, min(start + block, weight.shape[1]))
        carry = change[:, :start] @ factor[:start, here]
        scales, zeros = (t[:, group_of[here]].contiguous() for t in (scale, zero))
        own = factor[here, here].contiguous()
        found = _plane(weight[:, here].contiguous(), carry, own, scales, zeros, spec, by_column=True)
        change[:, here] = found.change
        codes.append(found.codes)
    return Rounded(torch.cat(codes, dim=1), scale, zero, change)


def weighted_scales(
    weight: Tensor, importance: Tensor, spec: QSpec, count: int, keep: int
) -> list[tuple[Tensor, Tensor]]:
    """The ``keep`` best scales and zero points of blocks for rounding to nearest, by ``Σ importance² (w − ŵ)²``.

    Args:
        weight: float32 ``[blocks, C]``.
        importance: ``[C]``, positive.
        spec: The quantization.
        count: See :func:`candidates`.
        keep: How many, best first.

    Returns:
        Pairs of ``[blocks]``.
    """
    scale, zero = candidates(weight.amin(dim=1), weight.amax(dim=1), spec, count)
    diagonal = torch.diag(importance)
    scale, zero = _preselect(weight, torch.zeros_like(weight), diagonal, scale, zero, spec, keep)
    return [(scale[:, i], zero[:, i]) for i in range(scale.shape[1])]


def descend(
    rounded: Rounded, gradient: Tensor, gram: Tensor, spec: QSpec, group: int, sweeps: int
) -> tuple[Rounded, Tensor]:
    """Move codes one by one while that lowers ``d G dᵀ`` (coordinate descent); columns in their own order.

    Args:
        rounded: The start, on an integer grid.
        gradient: ``D G``, changed in place.
        gram: float32 ``[K, K]``.
        spec: The quantization.
        group: Columns of one scale.
        sweeps: At most so many.

    Returns:
        What was found, and its ``D G``.
    """
    codes, bounds = rounded.codes.clone(), (int(spec.qmin), int(spec.qmax))
    solver.descend(gram, rounded.scale, rounded.zero, group, bounds, codes, gradient, sweeps)
    columns = codes.shape[1]
    scale = rounded.scale.repeat_interleave(group, dim=1)[:, :columns]
    moved = rounded.change + scale * (rounded.codes - codes)
    change = torch.where(codes == rounded.codes, rounded.change, moved)
    return Rounded(codes, rounded.scale, rounded.zero, change), gradient


def refit_scales(rounded: Rounded, weight: Tensor, gram: Tensor, spec: QSpec, group: int) -> Rounded:
    """The scales that lower ``d G dᵀ`` most under the codes as they are: least squares in the scales of each row.

    Args:
        rounded: The codes; columns in their own order, padded to whole groups.
        weight: float32 ``[out, K]``.
        gram: float32 ``[K, K]``.
        spec: The quantization.
        group: Columns of one scale.
    """
    rows, columns = weight.shape
    groups = rounded.scale.shape[1]
    steps = (rounded.codes - rounded.zero.repeat_interleave(group, dim=1)[:, :columns]).to(torch.float32)
    normal = torch.empty(rows, groups, groups, dtype=torch.float64, device=weight.device)
    for g in range(groups):
        here = slice(g * group, (g + 1) * group)
        seen = (steps[:, here] @ gram[here]) * steps
        normal[:, g] = seen.reshape(rows, groups, -1).sum(dim=2, dtype=torch.float64)
    wanted = ((weight @ gram) * steps).reshape(rows, groups, -1).sum(dim=2, dtype=torch.float64)
    normal = (normal + normal.mT) / 2
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.mean(dim=1, keepdim=True) + 1e-12
    scale = torch.linalg.solve(normal, wanted.unsqueeze(2)).squeeze(2).to(torch.float32)
    near = (scale > 0.5 * rounded.scale) & (scale < 2 * rounded.scale)  # else the codes no longer fit it
    scale = usable(torch.where(near, scale, rounded.scale), spec)
    change = weight - scale.repeat_interleave(group, dim=1)[:, :columns] * steps
    return Rounded(rounded.codes, scale, rounded.zero, change)


def choose(rows: Tensor, one: Rounded, other: Rounded) -> Rounded:
    """``one`` in the rows that are marked, ``other`` elsewhere."""
    mark = rows[:, None]
    fields = ("codes", "scale", "zero", "change")
    return Rounded(*(torch.where(mark, getattr(one, f), getattr(other, f)) for f in fields))


def to_qtensor(rounded: Rounded, spec: QSpec, shape: tuple[int, int]) -> QTensor:
    """The QTensor of a weight whose columns are in order and padded to whole groups."""
    scale_shape = spec.granularity.scale_shape(shape)
    values = rounded.codes if spec.format.is_integer else spec.format.encode(rounded.codes)
    zero = None
    if not spec.symmetric:
        zero = rounded.zero.to(torch.int32) if spec.format.is_integer else rounded.zero
        zero = _shaped(zero, scale_shape)
    return QTensor(values.to(spec.format.code_dtype), _shaped(rounded.scale, scale_shape), zero, spec, shape)


def _shaped(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[out, G]`` in the spec's own shape; one value for the tensor stands in every row."""
    return value.reshape(shape).contiguous() if shape else value[0, 0].clone()


def _plane(
    weight: Tensor, carry: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, spec: QSpec, by_column: bool
) -> solver.Plane:
    if spec.format.is_integer:
        return solver.nearest_plane(weight, carry, factor, scale, zero, (int(spec.qmin), int(spec.qmax)), by_column)
    return solver.nearest_plane_reference(weight, carry, factor, scale, zero, _grid(spec), by_column)


def _preselect(
    weight: Tensor, carry: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, spec: QSpec, keep: int
) -> tuple[Tensor, Tensor]:
    if scale.shape[1] <= keep:
        return scale, zero
    if spec.format.is_integer:
        error = solver.weigh(weight, carry, factor, scale, zero, (int(spec.qmin), int(spec.qmax)))
    else:
        error = solver.weigh_reference(weight, carry, factor, scale, zero, _grid(spec))
    # The whole range always stays, so that searching is never worse than not searching.
    chosen = torch.nn.functional.pad(_least(error, keep - 1), (0, 1)) if keep > 1 else _least(error, 1)
    return scale.gather(1, chosen).contiguous(), zero.gather(1, chosen).contiguous()


def _least(error: Tensor, count: int) -> Tensor:
    """Where the ``count`` smallest values of each row are, the first of equal ones first; ``error`` is used up.

    One after another: all in order, as ``argsort`` brings them, takes four times as long.
    """
    found = []
    for _ in range(count):
        found.append(error.argmin(dim=1, keepdim=True))
        error.scatter_(1, found[-1], torch.inf)
    return torch.cat(found, dim=1)


def _grid(spec: QSpec) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda wanted, zero: spec.format.round(wanted + zero) - zero
