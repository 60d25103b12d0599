"""A sample of rows that does not depend on order or on how the data is spread."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.calibrate.rows import Rows
from fewbit.errors import FewbitError


def filled(x: torch.Tensor, limit: int = 16) -> Rows:
    rows = Rows(x.shape[1], limit, "my layer")
    rows.update(x)
    return rows


def same(a: Rows, b: Rows) -> bool:
    return all(torch.equal(one, b.state_dict()[name]) for name, one in a.state_dict().items() if name != "abs")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_the_order_and_the_parts_do_not_matter(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes) + 1, 5, generator=generator)
    whole = filled(x)
    shuffled = filled(x[torch.randperm(len(x), generator=generator)])
    assert same(whole, shuffled)
    merged = Rows(5, 16, "my layer")
    for part in x.split([*sizes, 1]):
        merged = merged.merge(filled(part))
    assert same(whole, merged)
    assert torch.allclose(whole.mean_abs, x.abs().double().mean(0))
    assert torch.equal(whole.max_abs, x.abs().amax(0))
    kept = {tuple(row.tolist()) for row in whole.rows}
    assert len(kept) == min(16, len(x))
    assert kept <= {tuple(row.tolist()) for row in x}


def test_every_row_has_a_fair_chance() -> None:
    x = torch.arange(4096.0)[:, None].repeat(1, 3)
    picked = filled(x, 512).rows[:, 0]
    assert abs(float(picked.mean()) - 2047.5) < 200
    counts = torch.histc(picked, 8, 0, 4096)
    assert float(counts.min()) > 30


def test_it_comes_back_from_its_state() -> None:
    rows = filled(torch.randn(40, 4))
    again = Rows.from_state(rows.state_dict(), "my layer")
    assert same(rows, again)
    more = torch.randn(9, 4)
    rows.update(more)
    again.update(more)
    assert same(rows, again)


def test_what_cannot_be_sampled() -> None:
    with pytest.raises(FewbitError, match="my layer saw no calibration data"):
        _ = Rows(4, 8, "my layer").rows
    with pytest.raises(FewbitError, match="width 5 instead of 4"):
        Rows(4, 8, "my layer").update(torch.zeros(2, 5))
    with pytest.raises(FewbitError, match="my layer got an input that holds NaN"):
        Rows(2, 8, "my layer").update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(FewbitError, match="width"):
        Rows(4, 8, "my layer").merge(Rows(5, 8))
    empty = Rows(4, 8)
    empty.update(torch.zeros(0, 4))
    assert empty.count == 0
