"""Batches become single sequences without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.sequential.windows import windows


def test_rows_of_a_batch_are_windows() -> None:
    cut = windows([torch.arange(6).reshape(2, 3), torch.arange(4)])
    assert [w["input_ids"].tolist() for w in cut] == [[[0, 1, 2]], [[3, 4, 5]], [[0, 1, 2, 3]]]


def test_token_ids_may_be_plain_lists() -> None:
    assert windows([[5, 6, 7]])[0]["input_ids"].tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
def test_masked_ends_are_cut_off(mask: list[int]) -> None:
    ids, attention = torch.arange(5).reshape(1, 5), torch.tensor([mask])
    (window,) = windows([{"input_ids": ids, "attention_mask": attention, "labels": ids}])
    assert window.keys() == {"input_ids"}
    assert window["input_ids"].tolist() == [[i for i, kept in enumerate(mask) if kept]]


def test_holes_stay_masked() -> None:
    (window,) = windows([{"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 0, 1]])}])
    assert window["attention_mask"].tolist() == [[1, 0, 1]]


def test_a_mask_of_other_inputs_is_left_alone() -> None:
    batch = {"input_features": torch.ones(1, 8, 20), "attention_mask": torch.ones(1, 10)}
    assert "attention_mask" in windows([batch], "input_features")[0]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "is empty"),
        (["text"], "batch 1 is no tensor"),
        ([{"input_ids": torch.ones(2, 3), "token_type_ids": torch.ones(1, 3)}], "different numbers of rows"),
        ([{"input_ids": torch.ones(1, 3), "attention_mask": torch.zeros(1, 3)}], "masked as a whole"),
        ([{"use_cache": True}], "holds no tensor"),
    ],
)
def test_what_cannot_be_cut_is_refused(batches: list[Any], said: str) -> None:
    with pytest.raises(FewbitError, match=said):
        windows(batches)
