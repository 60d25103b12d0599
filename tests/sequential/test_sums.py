"""Sums over leaves join as if they were one, and come back from disk."""

from __future__ import annotations

from pathlib import Path

import torch

from fewbit.nn.intercept import Call
from fewbit.sequential.spare import Spare
from fewbit.sequential.sums import InputSums, Wanted


def sums(seed: int, held_back: bool = False) -> InputSums:
    made = InputSums("layer", Wanted(True, True, False))
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    made.update(Call("linear", x), False)
    if held_back:
        made.update(Call("linear", x + 1), True)
    made.flush()
    return made


def test_joined_sums_count_both() -> None:
    left, right = sums(0, held_back=True), sums(1)
    assert left.gram is not None
    assert right.gram is not None
    expected = left.gram.merge(right.gram)
    joined = left.join(right).statistics()
    assert joined is not None
    assert joined.gram.count == 14
    assert torch.equal(joined.gram.matrix, expected.matrix)
    assert joined.held_back is not None
    assert joined.held_back.count == 7


def test_sums_in_memory_that_was_used_before_are_the_same() -> None:
    spare, found = Spare(), []
    for kept in (None, spare, spare):
        made = InputSums("layer", Wanted(True, False, False), spare=kept)
        for seed in range(3):
            other = InputSums("layer", Wanted(True, False, False), spare=kept)
            for row in torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)):
                other.update(Call("linear", row), False)
            other.flush()
            made.join(other)
        assert made.gram is not None
        found.append(made.gram.matrix)
        made.leave()
        assert made.gram is None
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_parked_sums_come_back(tmp_path: Path) -> None:
    one = sums(0, held_back=True)
    assert one.gram is not None
    before = one.gram.matrix
    one.park(tmp_path / "sums.safetensors")
    assert one.nbytes == 0
    statistics = one.statistics()
    assert statistics is not None
    assert torch.equal(statistics.gram.matrix, before)
    assert not (tmp_path / "sums.safetensors").exists()


def test_parked_sums_can_be_joined(tmp_path: Path) -> None:
    left, right = sums(0), sums(1)
    left.park(tmp_path / "left")
    right.park(tmp_path / "right")
    joined = left.join(right).statistics()
    whole = sums(0).join(sums(1)).statistics()
    assert joined is not None
    assert whole is not None
    assert torch.equal(joined.gram.matrix, whole.gram.matrix)


def test_no_input_means_no_statistics() -> None:
    empty = InputSums("expert", Wanted(True, False, False))
    empty.update(Call("linear", torch.zeros(0, 5)), False)
    assert empty.statistics() is None
    assert empty.join(InputSums("expert", Wanted(True, False, False))).statistics() is None
    assert empty.mean_input() is None


def test_means_without_a_gram_matrix() -> None:
    one = InputSums("layer", Wanted(False, False, True))
    one.update(Call("linear", torch.tensor([[1.0, 3.0], [3.0, 5.0]])), False)
    assert one.statistics() is None
    mean = one.mean_input()
    assert mean is not None
    assert mean.tolist() == [[2.0, 4.0]]
