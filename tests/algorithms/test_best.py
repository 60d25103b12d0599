"""No candidate is better on the data that was held back."""

from __future__ import annotations

import pytest
import torch

from fewbit.algorithms import awq, best, gptq, hqq, rtn
from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.numbers.spec import QSpec


def statistics(columns: int, held_back: bool = True) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator).add(0.05)
    grams = [Gram(columns, "w"), Gram(columns, "w")]
    for gram in grams:
        gram.update(torch.randn(200, columns, generator=generator) @ mix)
    return Statistics(grams[0], grams[1] if held_back else None)


@pytest.mark.parametrize(
    "text", ["int4/g16/asym/f16", "int2/g16/sym", "int3/channel/asym", "int4/tensor/sym", "nf4/g16/sym"]
)
@pytest.mark.parametrize("held_back", [True, False])
def test_it_is_never_worse_than_any_candidate(text: str, held_back: bool) -> None:
    torch.manual_seed(0)
    weight, spec, seen = torch.randn(24, 64), QSpec.parse(text), statistics(64, held_back)
    judge = seen.held_back or seen.gram

    def error(t) -> float:
        return float(output_error(t.dequantize() - weight, judge.matrix).sum())

    ours = error(best.quantize_weight(weight, spec, None, "w", seen))
    for algorithm in (gptq, awq, hqq, rtn):
        assert ours <= error(algorithm.quantize_weight(weight, spec, None, "w", seen)) * (1 + 1e-6)


def test_rows_choose_for_themselves() -> None:
    torch.manual_seed(0)
    weight, spec, seen = torch.randn(24, 64), QSpec.parse("int3/g16/asym"), statistics(64)
    whole = [list(best._candidates(weight, spec, best.Options(), "w", seen))][0]
    assert seen.held_back is not None
    errors = torch.stack([output_error(t.dequantize() - weight, seen.held_back.matrix) for t in whole])
    chosen = best.quantize_weight(weight, spec, None, "w", seen)
    assert len(set(errors.argmin(0).tolist())) > 1
    ours = output_error(chosen.dequantize() - weight, seen.held_back.matrix)
    torch.testing.assert_close(ours, errors.min(0).values)


def test_who_takes_part_can_be_chosen() -> None:
    weight, spec, seen = torch.randn(8, 32), QSpec.parse("int4/g16/sym"), statistics(32)
    few = best.Options(data_free=False, clipped=False, dampings=(0.05,))
    assert len(list(best._candidates(weight, spec, few, "w", seen))) == 2
    assert len(list(best._candidates(weight, spec, best.Options(), "w", seen))) == 6
