"""The compiled loops against their twins, bit for bit on every instruction set, and against what they promise."""

from __future__ import annotations

import itertools

import pytest
import torch

from fewbit.kernels import dispatch, solver

native = dispatch._native
SETS = [] if native is None else native.available_isas()
BOUNDS = (-8, 7)


@pytest.fixture(params=SETS)
def isa(request):
    assert native is not None
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, carries, a Gram matrix and its upper factor."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * columns, columns, generator=generator) * torch.rand(columns, generator=generator).add(0.1)
    gram = (x.T @ x + 0.1 * torch.eye(columns)) / columns
    factor = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1).contiguous()
    return (
        torch.randn(rows, columns, generator=generator),
        torch.randn(rows, columns, generator=generator) * 0.1,
        gram,
        factor,
    )


def grid(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    scale = torch.rand(rows, width, generator=generator) * 0.3 + 0.1
    return scale, torch.randint(-3, 3, (rows, width), generator=generator).float()


def same(found: solver.Plane, twin: solver.Plane) -> None:
    assert torch.equal(found.codes.float(), twin.codes)
    for name in ("change", "error", "best"):
        assert torch.equal(getattr(found, name), getattr(twin, name)), name


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (33, 40), (16, 128)])
def test_the_kernels_equal_their_twins_on_every_set(isa: str, rows: int, columns: int) -> None:
    weight, carry, gram, factor = problem(rows, columns)
    rounding = solver.integers(*BOUNDS)
    for candidates in (1, 3, 16, 17):
        scale, zero = grid(rows, candidates)
        found = solver.nearest_plane(weight, carry, factor, scale, zero, BOUNDS, False)
        same(found, solver.nearest_plane_reference(weight, carry, factor, scale, zero, rounding, False))
        for power in (2, 3, 4):
            weighed = solver.weigh(weight, carry, factor, scale, zero, BOUNDS, power)
            assert torch.equal(weighed, solver.weigh_reference(weight, carry, factor, scale, zero, rounding, power))
    scale, zero = grid(rows, columns)
    found = solver.nearest_plane(weight, carry, factor, scale, zero, BOUNDS, True)
    same(found, solver.nearest_plane_reference(weight, carry, factor, scale, zero, rounding, True))
    for group in {1, min(columns, 16), columns}:
        scale, zero = grid(rows, -(-columns // group))
        codes = torch.zeros(rows, columns, dtype=torch.int32)
        ours, twin = (codes.clone(), weight @ gram), (codes.clone(), weight @ gram)
        solver.descend(gram, scale, zero, group, BOUNDS, *ours, 6)
        solver.descend_reference(gram, scale, zero, group, BOUNDS, *twin, 6)
        assert torch.equal(ours[0], twin[0])
        assert torch.equal(ours[1], twin[1])


def test_the_same_bits_at_every_number_of_threads() -> None:
    weight, carry, gram, factor = problem(70, 64)
    scale, zero = grid(70, 5)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        plane = solver.nearest_plane(weight, carry, factor, scale, zero, BOUNDS, False)
        codes, gradient = plane.codes.clone(), plane.change @ gram
        solver.descend(gram, scale[:, :1].contiguous(), zero[:, :1].contiguous(), 64, BOUNDS, codes, gradient, 3)
        results.append((plane, codes))
    torch.set_num_threads(before)
    for plane, codes in results[1:]:
        assert torch.equal(codes, results[0][1])
        assert torch.equal(plane.change, results[0][0].change)


def test_the_error_is_that_of_the_change() -> None:
    weight, _, gram, factor = problem(9, 24)
    scale, zero = grid(9, 4)
    found = solver.nearest_plane(weight, torch.zeros_like(weight), factor, scale, zero, BOUNDS, False)
    best = found.best.long()[:, None]
    values = scale.gather(1, best) * (found.codes - zero.gather(1, best))
    torch.testing.assert_close(found.change, weight - values)
    torch.testing.assert_close(found.error, ((found.change @ gram) * found.change).sum(1), rtol=1e-4, atol=1e-6)


def test_the_first_of_the_best_candidates_is_taken() -> None:
    weight, carry, _, factor = problem(20, 12)
    scale, zero = grid(20, 6)
    found = solver.nearest_plane(weight, carry, factor, scale, zero, BOUNDS, False)
    alone = torch.stack(
        [
            solver.nearest_plane(
                weight, carry, factor, scale[:, i : i + 1].contiguous(), zero[:, i : i + 1].contiguous(), BOUNDS, False
            ).error
            for i in range(6)
        ],
        dim=1,
    )
    assert torch.equal(found.error, alone.min(dim=1).values)
    assert torch.equal(found.best.long(), alone.argmin(dim=1))


def test_descent_never_raises_the_error_and_ends_where_no_single_step_helps() -> None:
    weight, _, gram, _ = problem(6, 10)
    scale, zero = grid(6, 2)
    wide = scale.repeat_interleave(5, 1), zero.repeat_interleave(5, 1)
    codes = ((weight / wide[0]).round() + wide[1]).clamp(*BOUNDS).to(torch.int32)

    def error(codes: torch.Tensor) -> torch.Tensor:
        change = (weight - wide[0] * (codes - wide[1])).double()
        return ((change @ gram.double()) * change).sum(1)

    before, gradient = error(codes), (weight - wide[0] * (codes - wide[1])) @ gram
    solver.descend(gram, scale, zero, 5, BOUNDS, codes, gradient, 100)
    after = error(codes)
    assert (after <= before * (1 + 1e-6)).all()
    assert (after < before).any()
    torch.testing.assert_close(gradient, (weight - wide[0] * (codes - wide[1])) @ gram, rtol=1e-4, atol=1e-4)
    for column, step in itertools.product(range(10), (-1, 1)):
        moved = codes.clone()
        moved[:, column] = (moved[:, column] + step).clamp(*BOUNDS)
        assert (error(moved) >= after * (1 - 1e-5)).all()


@pytest.mark.skipif(native is None, reason="not built")
def test_what_does_not_fit_is_refused_by_name() -> None:
    weight, carry, gram, factor = problem(3, 8)
    scale, zero = grid(3, 2)
    outputs = [
        torch.empty(3, 8, dtype=torch.int32),
        torch.empty(3, 8),
        torch.empty(3),
        torch.empty(3, dtype=torch.int32),
    ]
    for broken, word in [
        ({"scale": -scale}, "scale"),
        ({"factor": torch.zeros(8, 8)}, "diagonal"),
        ({"zero": zero + 2**21}, "zero"),
        ({"carry": carry[:, :4].contiguous()}, "carry"),
    ]:
        given = {"weight": weight, "carry": carry, "factor": factor, "scale": scale, "zero": zero} | broken
        with pytest.raises(ValueError, match=word):
            native.nearest_plane(*given.values(), False, *BOUNDS, *outputs)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="group"):
        native.descend(gram, scale, zero, 3, *BOUNDS, 1, outputs[0], outputs[1])  # type: ignore[union-attr]
