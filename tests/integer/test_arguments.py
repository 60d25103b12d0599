from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.integer.arguments import arguments


def test_batches_are_read_as_calibration_reads_them() -> None:
    x, label = torch.ones(2, 3), torch.tensor([0, 1])
    model = nn.Linear(3, 1)
    assert arguments(model, x) == ((x,), {})
    assert arguments(model, {"input": x}) == ((), {"input": x})
    assert arguments(model, (x, label)) == ((x,), {})


@pytest.mark.parametrize("batch", ["text", 3, ()])
def test_what_is_no_batch(batch: object) -> None:
    with pytest.raises(FewbitError, match="a batch is"):
        arguments(nn.Linear(3, 1), batch)
