"""A weight that is multiplied outside its layer is refused, as training would not see it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.recipe import Recipe, Rule

from .samples import net, pictures


class Bypassing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.words, self.body, self.how = nn.Embedding(7, 8), nn.Linear(8, 8), how

    def forward(self, ids: Tensor) -> Tensor:
        x = self.body(self.words(ids))
        return F.linear(x, self.words.weight) if self.how == "linear" else x @ self.words.weight


@pytest.mark.parametrize("how", ["linear", "matmul"])
def test_a_table_used_as_the_head_is_named(how: str) -> None:
    ids = torch.arange(7)
    model = Bypassing(how)
    if how == "matmul":
        model.words = nn.Embedding(8, 8)
    with pytest.raises(FewbitError, match="the weight of words is multiplied outside its layer"):
        fewbit.prepare_qat(model, "W8A8", [ids])
    skipping = Recipe("W8A8", rules=(Rule("words", skip=True),))
    prepared = fewbit.prepare_qat(model, skipping, [ids])
    assert torch.equal(prepared.eval()(ids), fewbit.convert(prepared)(ids))


def test_the_check_leaves_no_trace() -> None:
    x, _ = pictures(8)
    prepared = fewbit.prepare_qat(net(), "W4A4", [x], freeze_norms_after=3)
    assert prepared.training
    assert prepared.fewbit_training_steps == 0
    assert not any("_deployed_as" in module.__dict__ for module in prepared.modules())
