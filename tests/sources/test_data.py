"""Batches: made once while they fit, evenly spread; and which paths are no data."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.sources import Batches, load_data
from fewbit.sources.batches import spread


def test_batches_are_kept_while_they_fit() -> None:
    made: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> torch.Tensor:
        made.append((start, stop))
        return torch.arange(start, stop, dtype=torch.float32)

    batches = Batches(10, 4, make, describe="numbers", keep_bytes=2 * 4 * 4)  # room for two batches of four
    for _ in range(3):
        assert [b.tolist() for b in batches if isinstance(b, torch.Tensor)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
        ]
    assert made == [(0, 4), (4, 8), (8, 10), (8, 10), (8, 10)]
    assert batches[-1] is not batches[-1]
    assert batches[0] is batches[-3]
    with pytest.raises(IndexError):
        batches[3]


@given(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 200)))
def test_spread_takes_distinct_evenly_spaced_samples(count: int, limit: int | None) -> None:
    chosen = spread(count, limit)
    assert len(chosen) == min(count, limit or count)
    assert chosen[0] == 0
    assert chosen[-1] < count
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_paths_that_are_no_data_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(FewbitError, match=r"x\.csv is of no known kind; data is a folder or \.zip of pictures"):
        load_data(tmp_path / "x.csv")
    with pytest.raises(FewbitError, match=r"absent\.npy does not exist"):
        load_data(tmp_path / "absent.npy")


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"limit": 0}, {"limit": -1}])
def test_counts_below_one_are_told(tmp_path: Path, settings: dict[str, int]) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with pytest.raises(FewbitError, match="at least 1"):
        load_data(tmp_path / "x.npy", **settings)  # type: ignore[arg-type]
