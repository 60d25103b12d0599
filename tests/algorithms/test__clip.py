"""The clip search lowers the row's whole output error, whatever the granularity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.algorithms import _clip, rtn
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

RATIOS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def problem(seed: int, columns: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    x += 0.1 * torch.randn(64, columns, generator=generator)
    return torch.randn(7, columns, generator=generator), (x.T @ x / 64).double()


@given(
    st.integers(0, 2**31), st.sampled_from(["int3/g16/asym", "int4/g16/sym", "int3/channel/sym", "int4/tensor/asym"])
)
def test_no_row_gets_worse(seed: int, text: str) -> None:
    weight, gram = problem(seed)
    start = rtn.quantize_weight(weight, QSpec.parse(text))
    found = _clip.search_clips(start, weight, gram, RATIOS, 2, "w")
    before, after = (_clip.row_errors(t, weight, gram) for t in (start, found))
    if "tensor" in text:
        assert after.sum() <= before.sum()
    else:
        assert bool((after <= before).all())
    assert found.spec == start.spec
    assert found.shape == start.shape


def test_groups_know_of_each_others_errors() -> None:
    """Searching each group by its own error alone is worse over the whole row."""
    weight, gram = problem(3, 64)
    spec = QSpec.parse("int3/g16/sym")
    start = rtn.quantize_weight(weight, spec, rtn.Options("minmax"))
    together = _clip.search_clips(start, weight, gram, RATIOS, 3, "w")
    blocks = torch.block_diag(*[torch.ones(16, 16) for _ in range(4)]).double()
    alone = _clip.search_clips(start, weight, gram * blocks, RATIOS, 3, "w")
    whole = [float(_clip.row_errors(t, weight, gram).sum()) for t in (together, alone)]
    assert whole[0] < whole[1]


def test_the_best_of_each_row() -> None:
    weight, gram = problem(1)
    spec = QSpec.parse("int3/g16/asym")
    candidates = [rtn.quantize_weight(weight, spec, rtn.Options(name)) for name in ("minmax", "mse")]
    best = _clip.best_rows(candidates, weight, gram)
    errors = torch.stack([_clip.row_errors(t, weight, gram) for t in candidates])
    assert torch.allclose(_clip.row_errors(best, weight, gram), errors.amin(0))


def test_a_matrix_with_one_scale_is_taken_whole() -> None:
    weight, gram = problem(1)
    candidates = [rtn.quantize_weight(weight * s, QSpec.parse("int3/tensor/sym")) for s in (3.0, 1.0)]
    assert _clip.best_rows(candidates, weight, gram) is candidates[1]


@pytest.mark.parametrize("columns", [33, 40])
def test_ragged_groups(columns: int) -> None:
    weight, gram = problem(2, columns)
    start = rtn.quantize_weight(weight, QSpec.parse("int3/g16/asym"), rtn.Options("minmax"))
    found = _clip.search_clips(start, weight, gram, RATIOS, 1, "w")
    assert _clip.row_errors(found, weight, gram).sum() < _clip.row_errors(start, weight, gram).sum()


@pytest.mark.parametrize("text", ["int3/g16/asym/f16", "int4/channel/sym", "int4/tensor/asym"])
def test_rows_are_searched_alike_however_many_there_are(text: str) -> None:
    _, gram = problem(5)
    weight = torch.randn(2 * _clip.ROWS + 3, 40, generator=torch.Generator().manual_seed(5))
    spec = QSpec.parse(text)

    def solve(rows: torch.Tensor) -> QTensor:
        return _clip.search_clips(rtn.quantize_weight(rows, spec), rows, gram, RATIOS, 2, "w")

    found = _clip.by_rows(solve, weight, spec)
    assert found.shape == tuple(weight.shape)
    assert found.dequantize().shape == weight.shape
    alone = solve(weight if "tensor" in text else weight[-3:])
    assert torch.equal(found.codes[-len(alone.codes) :], alone.codes)
    assert (
        _clip.row_errors(found, weight, gram).sum()
        < _clip.row_errors(rtn.quantize_weight(weight, spec), weight, gram).sum()
    )


def test_errors_that_are_almost_equal_are_told_apart() -> None:
    weight, gram = problem(1)
    gram = gram * 1e4
    t = rtn.quantize_weight(weight, QSpec.parse("int8/channel/sym"))
    nearly = replace(
        t, scale=t.scale * (1 + 1e-6 * torch.randn(t.scale.shape, generator=torch.Generator().manual_seed(0)))
    )
    errors = torch.stack([_clip.row_errors(each, weight, gram) for each in (t, nearly)])
    best = _clip.best_rows([t, nearly], weight, gram)
    assert torch.equal((best.scale != t.scale).reshape(-1), errors[1] < errors[0])
