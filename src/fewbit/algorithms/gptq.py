"""GPTQ: each column is rounded so that it makes up for what rounding the columns before it did to the output.

Source: arXiv 2210.17323, with activation order; in the form of arXiv 2507.18553, which needs one Cholesky factor and
no inverse. Beyond the paper: the scale of each group is searched in the loop, by what the group leaves of the output
error (arXiv 2210.17323 takes the min-max range); codes are improved by coordinate descent afterwards (arXiv
2309.01885); and a row that rounding to nearest serves better is rounded to nearest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit import algorithms
from fewbit.algorithms import _lattice, rtn
from fewbit.algorithms._lattice import Rounded
from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError
from fewbit.kernels.side_by_side import side_by_side
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram",)
_ORDERS = ("activation", "given")
# Rows do not meet: so many values of a weight are rounded together, and half of a weight at most, so that two threads
# have one each.
_VALUES, _FEW_ROWS = 2**21, 64
_STEP = 256  # columns after which rows are given up that rounding to nearest serves worse


@dataclass(frozen=True)
class Options:
    """How codes are found.

    Attributes:
        order: ``"activation"``: columns with the largest inputs first; ``"given"``: as they stand.
        static_groups: Scales are chosen before any column is rounded, and activation order goes across groups. Else
            a group's scale follows what the groups before it left, and activation order goes by groups and within them.
        damping: Added to the diagonal of G, in units of its mean; more when G is close to singular.
        block: Columns whose updates are applied at once, where scales are static.
        clips: Shares of a range that are tried for each of its ends.
        finalists: Scales of a group that are tried in full.
        sweeps: Of coordinate descent at the end.
        refits: Of scales to the codes by least squares, each with another descent.
    """

    order: str = "activation"
    static_groups: bool = False
    damping: float = 0.01
    block: int = 128
    clips: int = 7
    finalists: int = 4
    sweeps: int = 8
    refits: int = 0


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a matrix ``[out, K]`` by the Gram matrix of its input.

    Args:
        weight: Floating matrix.
        spec: Any format; per tensor, channel (axis 0) or group.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Of the layer's input.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values; an unknown option.
    """
    options = options or Options()
    _check(weight, spec, options, name)
    seen = algorithms.required(statistics, "gptq", name)
    shape = (weight.shape[0], weight.shape[1])
    group = _lattice.group_size(spec, shape[1], name)
    work = weight.detach().to(torch.float32)
    missing = -shape[1] % group
    if missing:
        work = torch.nn.functional.pad(work, (0, missing))
    solver = _solver(seen, weight.device, group, missing, options, name)

    def rounded(part: Tensor) -> Rounded:
        return _kept(_rows(part, solver, spec, group, options, name), spec)

    parts = torch.split(work, shape[0] if isinstance(spec.granularity, PerTensor) else _part(*work.shape))
    # More than three threads are better off as torch's own.
    two = work.device.type == "cpu" and torch.get_num_threads() in (2, 3)
    with solver.damping_applied():
        done = side_by_side(rounded, parts, 2) if two else [rounded(part) for part in parts]
    return _lattice.to_qtensor(_joined(done), spec, shape)


def _part(rows: int, columns: int) -> int:
    """Rows that are rounded together: told by the shape alone, so that no bit depends on how many threads there are."""
    return max(1, min(max(_FEW_ROWS, -(-rows // 2)), _VALUES // columns))


@dataclass(frozen=True)
class _Solver:
    """What the layers that share an input are rounded by, as far as the scale of G goes (nothing here depends on it).

    Attributes:
        damped: G, float32, and G + λ I within :meth:`damping_applied`. It may be the sums themselves, whose diagonal
            changes for so long: a copy would be half a gigabyte where a layer has 11008 inputs.
        damping: λ.
        columns: The order in which columns are rounded.
        factor: R in that order.
    """

    damped: Tensor
    damping: Tensor
    columns: Tensor
    factor: Tensor

    @contextlib.contextmanager
    def damping_applied(self) -> Iterator[None]:
        """λ on the diagonal, and the diagonal bit for bit as it was at the end."""
        diagonal = self.damped.diagonal().clone()
        self.damped.diagonal().add_(self.damping)
        try:
            yield
        finally:
            self.damped.diagonal().copy_(diagonal)

    def error(self, change: Tensor) -> Tensor:
        """``d G dᵀ`` of each row."""
        return ((change @ self.damped) * change).sum(dim=1) - self.damping * change.square().sum(dim=1)


def _solver(seen: Statistics, device: torch.device, group: int, missing: int, options: Options, name: str) -> _Solver:
    key = (__name__, str(device), group, missing, options.damping, options.order, options.static_groups)
    if (known := seen.memo.get((key, seen.gram.count))) is not None:
        assert isinstance(known, _Solver)
        return known
    seen.memo.clear()  # one is large enough
    gram = seen.gram.total.to(device)
    if missing:
        gram = torch.nn.functional.pad(gram, (0, missing, 0, missing))
    columns, factor = _factorized(gram, group, options, name)
    damped = gram.to(torch.float32).contiguous()
    made = _Solver(damped, options.damping * damped.diagonal().mean(), columns, factor)
    seen.memo[key, seen.gram.count] = made
    return made


def _factorized(gram: Tensor, group: int, options: Options, name: str) -> tuple[Tensor, Tensor]:
    """The order of columns, and R in it."""
    static = options.static_groups or group == gram.shape[0]
    order = "given" if options.order == "given" else ("columns" if static else "groups")
    columns = _lattice.column_order(gram.diagonal(), group, order)
    return columns, _lattice.factorize(gram, options.damping, name, columns)


def _rows(work: Tensor, solver: _Solver, spec: QSpec, group: int, options: Options, name: str) -> Rounded:
    """Some rows from the start to the end."""
    found = _solve(work, solver.factor, solver.columns, spec, group, options)
    if spec.format.is_integer and options.sweeps > 0:
        found, error = _improve(found, work, solver, spec, group, options)
    else:
        error = solver.error(found.change)
    return _no_worse_than_nearest(found, error, work, solver, spec, name)


def _kept(part: Rounded, spec: QSpec) -> Rounded:
    """What is kept of some rows: not what they changed, and codes in their own type."""
    codes = part.codes.to(spec.format.code_dtype) if spec.format.is_integer else part.codes
    return Rounded(codes, part.scale, part.zero, torch.empty(0))


def _joined(parts: list[Rounded]) -> Rounded:
    """All rows again."""
    if len(parts) == 1:
        return parts[0]
    codes, scale, zero = (torch.cat([getattr(part, f) for part in parts]) for f in ("codes", "scale", "zero"))
    return Rounded(codes, scale, zero, parts[0].change)


def _check(weight: Tensor, spec: QSpec, options: Options, name: str) -> None:
    affine.check_finite(weight, name)
    if weight.dim() != 2:
        raise FewbitError(f"{name} has shape {tuple(weight.shape)}; gptq quantizes matrices")
    if options.order not in _ORDERS:
        raise FewbitError(f"gptq knows the orders {' and '.join(_ORDERS)}, not {options.order!r}")
    if min(options.clips, options.finalists, options.block) < 1 or not options.damping >= 0:
        raise FewbitError("gptq's clips, finalists and block are 1 or more, and its damping is not negative")


def _solve(work: Tensor, factor: Tensor, columns: Tensor, spec: QSpec, group: int, options: Options) -> Rounded:
    """Codes in the columns' own order."""
    moved = work.index_select(1, columns)
    if options.static_groups or group == work.shape[1]:
        found = _static(moved, factor, columns, spec, group, options)
        scale, zero = found.scale, found.zero
    else:
        found = _lattice.round_blocks(moved, factor, spec, group, options.clips, options.finalists)
        back = (columns[::group] // group).argsort()  # the groups were taken in another order
        scale, zero = found.scale[:, back].contiguous(), found.zero[:, back].contiguous()
    back = columns.argsort()
    return Rounded(found.codes.index_select(1, back), scale, zero, found.change.index_select(1, back))


def _improve(
    found: Rounded, work: Tensor, solver: _Solver, spec: QSpec, group: int, options: Options
) -> tuple[Rounded, Tensor]:
    """Coordinate descent over codes, and scales refitted to them, by turns; and the error of each row."""
    found, error = _descended(found, work, solver.damped, spec, group, options)
    return found, error - solver.damping * found.change.square().sum(dim=1)


def _descended(
    found: Rounded, work: Tensor, damped: Tensor, spec: QSpec, group: int, options: Options
) -> tuple[Rounded, Tensor]:
    found, error = _descended_once(found, damped, spec, group, options)
    for _ in range(0 if isinstance(spec.granularity, PerTensor) else options.refits):
        refitted = _lattice.refit_scales(found, work, damped, spec, group)
        moved, other = _descended_once(refitted, damped, spec, group, options)
        found, error = _lattice.choose(other < error, moved, found), torch.minimum(other, error)
    return found, error


def _descended_once(
    found: Rounded, damped: Tensor, spec: QSpec, group: int, options: Options
) -> tuple[Rounded, Tensor]:
    """With the error of each row, for which the descent's own ``D G`` saves a product."""
    found, gradient = _lattice.descend(found, found.change @ damped, damped, spec, group, options.sweeps)
    return found, (gradient * found.change).sum(dim=1)


def _static(moved: Tensor, factor: Tensor, columns: Tensor, spec: QSpec, group: int, options: Options) -> Rounded:
    """Rounding under scales that were chosen beforehand; rows that are one group try several."""
    back, rows = columns.argsort(), moved.shape[0]
    own, importance = moved[:, back], factor.diagonal()[back]
    whole = group == moved.shape[1]
    choices: list[list[tuple[Tensor, Tensor]]] = []
    for start in range(0, moved.shape[1], group):
        here = slice(start, start + group)
        block = own[:, here].reshape(1, -1) if isinstance(spec.granularity, PerTensor) else own[:, here].contiguous()
        weights = importance[here].repeat(block.shape[1] // group)
        keep = min(options.finalists, 3) if whole and rows > 1 else 1
        choices.append(_lattice.weighted_scales(block, weights, spec, options.clips, keep))
    best: Rounded | None = None
    for turn in range(len(choices[0])):
        scale, zero = (torch.stack([each[turn][i] for each in choices], dim=1).expand(rows, -1) for i in (0, 1))
        found = _lattice.round_columns(moved, factor, spec, scale, zero, columns // group, options.block)
        best = found if best is None else _better(best, found, factor, isinstance(spec.granularity, PerTensor))
    assert best is not None
    return best


def _better(one: Rounded, other: Rounded, factor: Tensor, whole: bool) -> Rounded:
    """Row by row (or, with one scale for all, as a whole) the one with the smaller error."""
    errors = [(each.change @ factor).square().sum(dim=1) for each in (one, other)]
    if whole:
        return other if errors[1].sum() < errors[0].sum() else one
    return _lattice.choose(errors[1] < errors[0], other, one)


def _no_worse_than_nearest(
    found: Rounded, error: Tensor, work: Tensor, solver: _Solver, spec: QSpec, name: str
) -> Rounded:
    """The solution, with its error in each row; rounded to nearest in the rows (or, with one scale for all, the tensor)
    where that is better."""
    whole = isinstance(spec.granularity, PerTensor)
    for calibrator in ("minmax", "mse"):
        nearest = _as_rounded(rtn.quantize_weight(work, spec, rtn.Options(calibrator), name), work, found)
        rows = torch.arange(len(work), device=work.device) if whole else _near(nearest.change, solver, error)
        other = torch.full_like(error, torch.inf)
        other[rows] = solver.error(nearest.change[rows])
        better = (other.sum() < error.sum()).expand(work.shape[0]) if whole else other < error
        if bool(better.any()):
            found, error = _lattice.choose(better, nearest, found), torch.where(better, other, error)
    return found


def _near(change: Tensor, solver: _Solver, error: Tensor) -> Tensor:
    """The rows in which a change may have less than ``error``, which few have: told by sums of squares of D R, of which
    the first columns mostly are enough."""
    factor, columns = solver.factor, solver.columns
    beyond = (factor[0] @ factor[0] - solver.damped[columns[0], columns[0]] + solver.damping).clamp(min=0)
    slack = beyond + 1e-5 * solver.damped.diagonal().mean()  # what R holds beyond G, and what was rounded
    limit = 1.01 * error + 1.01 * slack * change.square().sum(dim=1)
    rows, moved = torch.arange(len(change), device=change.device), change[:, :0]
    for start in range(0, len(columns), _STEP):
        here = slice(start, start + _STEP)
        own = change if len(rows) == len(change) else change[rows]
        moved = torch.cat([moved, own.index_select(1, columns[here])], dim=1)
        limit = limit - (moved @ factor[: here.stop, here]).square().sum(dim=1)
        left = limit > 0
        rows, moved, limit = rows[left], moved[left], limit[left]
    return rows


def _as_rounded(t: QTensor, weight: Tensor, like: Rounded) -> Rounded:
    values = t.codes if t.spec.format.is_integer else t.spec.format.decode(t.codes)
    groups = like.scale.shape[1]
    scale, zero = (
        (torch.zeros_like(t.scale) if part is None else part).to(torch.float32).reshape(-1, groups)
        for part in (t.scale, t.zero_point)
    )
    rows = weight.shape[0]
    return Rounded(values.to(like.codes.dtype), scale.expand(rows, -1), zero.expand(rows, -1), weight - t.dequantize())
