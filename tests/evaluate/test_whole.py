"""Whole-model errors over batches, and models that do not belong together."""

from __future__ import annotations

import math

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.evaluate.error import cosine, sqnr
from fewbit.evaluate.whole import OutputErrors


def test_batches_of_different_sizes_weigh_by_their_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(n, 5, generator=generator) for n in (4, 1)]
    after = [x + 0.3 * torch.randn(x.shape, generator=generator) for x in before]
    errors = OutputErrors()
    for x, y in zip(before, after):
        errors.add(x, y)
    (cost,) = errors.costs
    everything = torch.cat(before), torch.cat(after)
    assert cost.sqnr == pytest.approx(sqnr(*everything), abs=1e-4)
    assert cost.cosine == pytest.approx(cosine(*everything))
    assert cost.top1 == pytest.approx(float((everything[0].argmax(1) == everything[1].argmax(1)).double().mean()))
    assert (errors.batches, errors.samples) == (2, 5)


def test_several_outputs_have_a_row_each_and_one_total() -> None:
    errors = OutputErrors()
    errors.add(
        {"hidden": torch.full((2, 3), 3.0), "logits": torch.tensor([[1.0, 2.0]])},
        {"hidden": torch.full((2, 3), 3.3), "logits": torch.tensor([[2.0, 1.0]])},
    )
    hidden, logits = errors.costs
    assert hidden.sqnr == pytest.approx(20, abs=1e-4)
    assert hidden.top1 is None
    assert logits.top1 == 0
    assert errors.main is logits or errors.main == logits
    assert errors.total_sqnr == pytest.approx(10 * math.log10((54 + 5) / (0.54 + 2)), abs=1e-4)


def test_language_model_logits_count_every_token() -> None:
    before = torch.zeros(2, 3, 4)
    before[..., 1] = 1
    after = before.clone()
    after[0, 0, 2] = 5
    errors = OutputErrors()
    errors.add({"logits": before}, {"logits": after})
    assert errors.main.top1 == pytest.approx(5 / 6)


def test_without_scores_the_first_output_is_the_main_one() -> None:
    errors = OutputErrors()
    errors.add((torch.ones(2, 3, 4), torch.ones(2, 3)), (torch.ones(2, 3, 4), torch.ones(2, 3)))
    assert errors.main.name == "0"
    assert errors.main.top1 is None
    assert errors.total_sqnr == math.inf


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, None, "no floating tensor"),
        (torch.tensor([1]), torch.tensor([1]), "no floating tensor"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "'a' is missing"),
        (torch.ones(2, 3), torch.ones(2, 4), r"shape \(2, 4\)"),
        (torch.ones(2), torch.tensor([1.0, math.nan]), "NaN or infinity"),
        (torch.ones(2), torch.tensor([1.0, math.inf]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_told(before: object, after: object, told: str) -> None:
    with pytest.raises(FewbitError, match=told):
        OutputErrors().add(before, after)
