from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.algorithms._batched import best_scale, descend, output_errors, round_trip, solve_groups
from fewbit.numbers.spec import QSpec

SPEC = QSpec.parse("int2/channel/sym")


def sample(groups: int, out: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 50, columns, generator=generator) + 0.5
    return torch.randn(groups, out, columns, generator=generator), x.transpose(1, 2) @ x / 50


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 1000))
def test_never_worse_than_rounding_to_nearest_under_any_scale_that_was_tried(
    groups: int, out: int, columns: int, seed: int
) -> None:
    weight, gram = sample(groups, out, columns, seed)
    codes, scale = solve_groups(weight, gram, SPEC)
    found = output_errors(codes * scale[..., None] - weight, gram)
    for share in (1.0, 0.8, 0.5):
        whole = weight.abs().amax(-1) / SPEC.qmax * share
        if share == 1.0:
            nearest = output_errors(round_trip(weight, whole, SPEC) - weight, gram)
            assert bool((found <= nearest * (1 + 1e-4) + 1e-6).all())
    assert SPEC.qmin <= float(codes.min())
    assert float(codes.max()) <= SPEC.qmax
    assert torch.equal(codes, codes.round())


def test_descent_ends_where_no_single_code_can_move() -> None:
    weight, gram = sample(3, 2, 4, 5)
    scale = best_scale(weight, gram, SPEC)
    start = torch.round(weight / scale[..., None]).clamp(SPEC.qmin, SPEC.qmax)
    codes = descend(weight, gram, start, scale, SPEC, 50)
    least = output_errors(codes * scale[..., None] - weight, gram)
    for column, value in itertools.product(range(4), (-2, -1, 0, 1)):
        moved = codes.clone()
        moved[..., column] = value
        assert bool((output_errors(moved * scale[..., None] - weight, gram) >= least - 1e-4).all())
