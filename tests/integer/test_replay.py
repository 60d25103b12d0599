from __future__ import annotations

import torch

from fewbit.integer import replay
from fewbit.integer.replay import Replay


def test_a_list_is_gone_through_again_and_nothing_is_kept() -> None:
    batches = [torch.ones(1), torch.zeros(1)]
    again = Replay(batches)
    assert [list(again), list(again)] == [batches, batches]
    assert not again.kept


def test_what_can_be_gone_through_once_is_kept() -> None:
    again = Replay(torch.full((1,), float(i)) for i in range(3))
    assert [[float(x) for x in again] for _ in range(2)] == [[0, 1, 2], [0, 1, 2]]


def test_only_so_much_is_kept_but_never_nothing(monkeypatch) -> None:
    monkeypatch.setattr(replay, "_MOST_BYTES", 8)
    again = Replay({"x": torch.full((1,), float(i))} for i in range(5))
    assert len(list(again)) == 5
    assert [float(batch["x"]) for batch in again] == [0, 1]
