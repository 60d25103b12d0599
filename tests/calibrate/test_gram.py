"""The Gram matrix against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.errors import FewbitError


def gram_of(*batches: torch.Tensor) -> Gram:
    gram = Gram(batches[0].shape[-1], "layer")
    for batch in batches:
        gram.update(batch)
    return gram


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12), st.sampled_from([1e-3, 1.0, 300.0]))
def test_it_is_the_mean_of_the_outer_products(rows, columns, size) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(r, columns) * size for r in rows]
    gram, x = gram_of(*batches), torch.cat(batches).double().numpy()
    np.testing.assert_allclose(gram.matrix.numpy(), x.T @ x / len(x), rtol=1e-5, atol=1e-5 * size**2)
    np.testing.assert_allclose(gram.mean_abs.numpy(), np.abs(x).mean(0), rtol=1e-12)
    np.testing.assert_allclose(gram.mean.numpy(), x.mean(0), rtol=1e-9, atol=1e-12 * size)
    assert gram.count == len(x)
    assert torch.equal(gram.matrix, gram.matrix.T)


@pytest.mark.parametrize("columns", [511, 512, 513, 1100])
def test_tiles_make_up_the_whole(columns: int) -> None:
    x = torch.randn(20, columns)
    torch.testing.assert_close(gram_of(x).matrix, x.double().T @ x.double() / 20, rtol=1e-5, atol=1e-5)


def test_many_rows_lose_nothing_against_float64() -> None:
    x = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)) + 100
    exact = (x.double().T @ x.double()) / len(x)
    assert (gram_of(x).matrix / exact - 1).abs().max() < 1e-6  # one float32 product of all rows loses some 1e-5


def test_leading_dimensions_are_rows_and_half_precision_is_widened() -> None:
    x = torch.randn(2, 5, 4).to(torch.bfloat16)
    torch.testing.assert_close(gram_of(x).matrix, gram_of(x.float().reshape(-1, 4)).matrix, rtol=1e-6, atol=1e-6)


def test_autocast_does_not_reach_it() -> None:
    x = torch.randn(50, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gram_of(x).matrix
    assert torch.equal(inside, gram_of(x).matrix)


def test_merging_is_updating_with_both() -> None:
    a, b = torch.randn(7, 4), torch.randn(9, 4)
    merged = gram_of(a).merge(gram_of(b))
    assert merged.count == 16
    torch.testing.assert_close(merged.matrix, gram_of(a, b).matrix)
    torch.testing.assert_close(merged.mean_abs, gram_of(a, b).mean_abs)
    empty = Gram(4)
    assert torch.equal(gram_of(a).merge(empty).matrix, gram_of(a).matrix)
    with pytest.raises(FewbitError, match="width 4"):
        gram_of(a).merge(Gram(5))


def test_the_state_brings_it_back_and_adds_up() -> None:
    a, b = gram_of(torch.randn(7, 4)), gram_of(torch.randn(9, 4))
    back = Gram.from_state(a.state_dict(), "layer")
    assert (back.count, back.columns, back.name) == (7, 4, "layer")
    assert torch.equal(back.matrix, a.matrix)
    summed = Gram.from_state({key: value + b.state_dict()[key] for key, value in a.state_dict().items()})
    assert torch.equal(summed.matrix, a.merge(b).matrix)


def test_wide_ones_stay_in_float32() -> None:
    assert Gram(4096).state_dict()["products"].dtype == torch.float64
    assert Gram(4097).state_dict()["products"].dtype == torch.float32


def test_what_it_cannot_take_is_told_by_name() -> None:
    with pytest.raises(FewbitError, match="layer got an input of width 3 instead of 4"):
        Gram(4, "layer").update(torch.ones(2, 3))
    for value in (float("nan"), float("inf")):
        with pytest.raises(FewbitError, match="layer got an input that holds NaN"):
            Gram(4, "layer").update(torch.full((2, 4), value))
    for read in ("matrix", "mean_abs", "mean"):
        with pytest.raises(FewbitError, match="layer saw no calibration data"):
            getattr(Gram(4, "layer"), read)


def test_the_output_error_is_what_running_the_layer_says() -> None:
    x, change = torch.randn(50, 6), torch.randn(3, 6)
    direct = (x.double() @ change.double().T).square().mean(0)
    torch.testing.assert_close(output_error(change, gram_of(x).matrix), direct, rtol=1e-5, atol=0)


def test_statistics_hold_a_second_gram_back() -> None:
    gram = gram_of(torch.randn(5, 2))
    assert Statistics(gram).held_back is None
    assert Statistics(gram, gram).held_back is gram
