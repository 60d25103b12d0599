"""The parts of GPTQ, each against its definition."""

from __future__ import annotations

import pytest
import torch

from fewbit.algorithms import _lattice
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


def gram_of(columns: int, rows: int = 64) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.T @ x / rows


def test_the_factor_is_upper_triangular_and_its_square_is_the_damped_gram() -> None:
    gram = gram_of(12)
    factor = _lattice.factorize(gram, 0.01, "w")
    assert torch.equal(factor, factor.triu())
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(12)
    torch.testing.assert_close((factor @ factor.T).double(), damped, rtol=1e-5, atol=1e-5)


def test_damping_grows_until_a_singular_gram_has_a_factor() -> None:
    singular = torch.ones(6, 6, dtype=torch.float64)
    assert torch.isfinite(_lattice.factorize(singular, 0.0, "w")).all()
    assert torch.isfinite(_lattice.factorize(torch.zeros(6, 6), 0.01, "w")).all()
    with pytest.raises(FewbitError, match="w: the statistics"):
        _lattice.factorize(torch.full((3, 3), float("nan")), 0.01, "w")


def test_orders_are_permutations_and_groups_stay_together() -> None:
    energy = torch.tensor([1.0, 5, 2, 3, 9, 1, 7])
    assert _lattice.column_order(energy, 2, "given").tolist() == list(range(7))
    assert _lattice.column_order(energy, 2, "columns").tolist() == [4, 6, 1, 3, 2, 0, 5]
    assert _lattice.column_order(energy, 2, "groups").tolist() == [4, 5, 6, 1, 0, 3, 2]


@pytest.mark.parametrize("text", ["int4/g8/asym/f16", "int3/g8/sym/bf16", "uint4/g8/asym", "nf4/g8/sym"])
def test_candidates_are_usable_scales_of_which_the_first_spans_the_range(text: str) -> None:
    spec = QSpec.parse(text)
    low, high = torch.tensor([-1.0, 0.0, -2.0, 0.5]), torch.tensor([2.0, 0.0, -1.0, 1.0])
    scale, zero = _lattice.candidates(low, high, spec, 5)
    assert scale.shape == zero.shape == (4, 5 if spec.symmetric else 25)
    assert (scale > 0).all()
    assert torch.equal(scale, scale.to(spec.scale_dtype).float())
    assert ((zero >= spec.qmin) & (zero <= spec.qmax)).all() or spec.symmetric
    assert (scale[1] == 1).all()
    assert (zero[1] == 0).all()
    reach = scale[:, 0] * (spec.qmax - zero[:, 0])
    assert (reach >= high.clamp(min=0) - scale[:, 0]).all()


def test_groups_of_every_granularity() -> None:
    sizes = {"int4/g8/sym": 8, "int4/channel/sym": 40, "int4/tensor/sym": 40, "int4/token/sym": 40}
    for text, size in sizes.items():
        assert _lattice.group_size(QSpec.parse(text), 40, "w") == size
    with pytest.raises(FewbitError, match="w: int4/channel1/sym has scales by column"):
        _lattice.group_size(QSpec.parse("int4/channel1/sym"), 40, "w")


@pytest.mark.parametrize("text", ["int4/g8/asym", "int3/g8/sym", "nf4/g8/sym"])
def test_the_change_is_the_weight_less_its_codes(text: str) -> None:
    torch.manual_seed(0)
    spec, weight = QSpec.parse(text), torch.randn(5, 24)
    gram = gram_of(24)
    found = _lattice.round_blocks(weight, _lattice.factorize(gram, 0.01, "w"), spec, 8, 5, 3)
    t = _lattice.to_qtensor(found, spec, (5, 24))
    torch.testing.assert_close(t.dequantize(), weight - found.change, rtol=1e-5, atol=1e-6)
    if spec.format.is_integer:
        single = gram.float()
        moved, _ = _lattice.descend(found, found.change @ single, single, spec, 8, 20)
        back = _lattice.to_qtensor(moved, spec, (5, 24)).dequantize()
        torch.testing.assert_close(back, weight - moved.change, rtol=1e-5, atol=1e-6)
        errors = [((each.change @ single) * each.change).sum() for each in (moved, found)]
        assert errors[0] <= errors[1]


@pytest.mark.parametrize("size", [1, 2, 5, 511, 512, 1300])
def test_a_matrix_is_turned_in_place(size: int) -> None:
    matrix = torch.randn(size, size)
    wanted = matrix.flip(0, 1)
    assert _lattice._turned(matrix) is matrix
    assert torch.equal(matrix, wanted)


def test_the_least_of_equal_values_are_the_first() -> None:
    error = torch.randint(0, 5, (200, 11), generator=torch.Generator().manual_seed(0)).float()
    wanted = error.argsort(dim=1, stable=True)[:, :4]
    assert torch.equal(_lattice._least(error, 4), wanted)
