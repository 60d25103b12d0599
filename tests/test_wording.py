"""One and several."""

from __future__ import annotations

import pytest

from fewbit.wording import counted


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches"), (1000, "1000 batches")]
)
def test_one_is_one_and_others_are_many(count: int, told: str) -> None:
    assert counted(count, "batch", "batches") == told
    assert counted(count, "layer") == f"{count} layer{'' if count == 1 else 's'}"
