"""Calling a model on whatever a data loader gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbit.calibrate.collect import call_model, peek, run_batches
from fewbit.errors import FewbitError


class Two(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x * mask


def test_tensors_mappings_and_tuples():
    x, mask = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(call_model(Two(), x), x)
    assert torch.equal(call_model(Two(), {"x": x, "mask": mask}), mask)
    assert torch.equal(call_model(Two(), (x, mask)), mask)


def test_labels_are_left_out():
    x, labels = torch.ones(2, 3), torch.tensor([1, 2])
    assert torch.equal(call_model(nn.Identity(), (x, labels)), x)
    assert torch.equal(call_model(Two(), [x, labels]), x)


def test_no_gradient_is_kept():
    layer = nn.Linear(3, 3)
    assert not call_model(layer, torch.ones(1, 3)).requires_grad


@pytest.mark.parametrize("batch", ["text", 3, None])
def test_other_batches_are_refused(batch):
    with pytest.raises(FewbitError, match="a batch is a tensor"):
        call_model(nn.Identity(), batch)


def test_run_batches_counts_and_tells_progress():
    seen = []
    assert run_batches(nn.Identity(), [torch.ones(1)] * 3, lambda *step: seen.append(step)) == 3
    assert seen == [("calibrate", 1, 3), ("calibrate", 2, 3), ("calibrate", 3, 3)]
    assert run_batches(nn.Identity(), iter([torch.ones(1)] * 2)) == 2


def test_a_failing_batch_is_named():
    with pytest.raises(FewbitError, match="failed on calibration batch 2: mat1 and mat2"):
        run_batches(nn.Linear(3, 3), [torch.ones(1, 3), torch.ones(1, 4)])
    with pytest.raises(FewbitError, match="calibration data is empty"):
        run_batches(nn.Identity(), [])


def test_peek_gives_the_first_batch_and_all_of_them():
    for data in ([1, 2, 3], iter([1, 2, 3]), (n for n in (1, 2, 3))):
        first, batches = peek(data)
        assert first == 1
        assert list(batches) == [1, 2, 3]
    assert peek(None) == (None, None)


@pytest.mark.parametrize("data", [torch.ones(2), {"x": torch.ones(2)}, "text", [], iter([])])
def test_peek_refuses_single_batches_and_nothing(data):
    with pytest.raises(FewbitError, match="batch"):
        peek(data)
