from __future__ import annotations

import numpy as np
import torch

from fewbit.calibrate.kept import Kept, first_part, nbytes


def test_everything_passes_and_the_first_stay() -> None:
    batches = [np.full(4, i, np.float32) for i in range(5)]
    seen = Kept(iter(batches), most=40)
    assert len(seen) == 0
    assert [int(batch[0]) for batch in seen] == [0, 1, 2, 3, 4]
    assert [int(batch[0]) for batch in seen.batches] == [0, 1, 2]
    again = Kept(batches, most=1)
    assert len(again) == 5
    for _ in range(2):
        assert len(list(again)) == 5
        assert len(again.batches) == 1


def test_bytes_of_batches_of_any_kind() -> None:
    x = np.zeros(3, np.float32)
    assert nbytes(x) == nbytes(torch.zeros(3)) == 12
    assert nbytes({"a": x, "b": [x, x]}) == 36
    assert nbytes("text") == 0


def test_the_first_part_is_what_is_kept_and_no_more_is_asked_for() -> None:
    batches = iter([np.full(4, i, np.float32) for i in range(5)])
    assert [int(batch[0]) for batch in first_part(batches, most=40)] == [0, 1, 2]
    assert int(next(batches)[0]) == 3
    assert len(first_part(iter([np.zeros(9)]), most=1)) == 1
