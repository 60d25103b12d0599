"""The copy that is worked on: what is refused, and that the user's model is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn.working_copy import fold_checked, working_copy


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_the_copy_is_in_evaluation_mode_and_shares_nothing() -> None:
    model = cnn().train()
    copy = working_copy(model)
    assert model.training
    assert not copy.training
    copy[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: fewbit.quantize(nn.Sequential(nn.Linear(4, 4)), "W8A16"), "quantized already"),
        (lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "scripted"),
        (lambda: nn.LazyLinear(3), "no values yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "no values yet"),
        (lambda: nn.utils.weight_norm(nn.Linear(2, 2)), "cannot be copied"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_worked_on_is_refused(model, reason) -> None:
    made = model()
    if reason == "cannot be copied":
        made(torch.ones(1, 2))
    with pytest.raises(FewbitError, match=reason):
        working_copy(made)


@pytest.mark.parametrize("first", [None, torch.randn(2, 3, 8, 8)])
def test_batch_norm_is_folded_with_and_without_an_example(first) -> None:
    folded = fold_checked(cnn().eval(), first)
    assert folded.pairs == [("0", "1")]
    assert isinstance(folded.model[1], nn.Identity)
