"""A fingerprint changes with the values, however they were changed."""

from __future__ import annotations

import pytest
import torch

from fewbit.train.fingerprint import fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2)])
def test_every_way_to_change_values_shows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)
    assert fingerprint([x]) == fingerprint([x])
    if x.numel() < 2 or dtype == torch.bool:
        return
    for change in (lambda v: v.flip(0), lambda v: v.roll(1, -1), lambda v: v * 2):
        before = fingerprint([x])
        x.data.copy_(change(x).clone())
        assert fingerprint([x]) != before
