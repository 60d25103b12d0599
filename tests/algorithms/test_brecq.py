from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewbit.algorithms import brecq, gptq, rtn
from fewbit.algorithms._reconstruction import Part
from fewbit.calibrate.gram import Gram, Statistics
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

SPEC = QSpec.parse("int3/channel/sym")


def part() -> Part:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(8, 8, generator=generator) for name in ("a", "b")}
    bias = {"a/bias": torch.zeros(8)}

    def forward(values, x: Tensor) -> Tensor:
        return torch.relu(x @ values["a"].T + values["a/bias"]) @ values["b"].T

    mix = torch.randn(8, 8, generator=generator)
    inputs = [torch.randn(16, 8, generator=generator) @ mix for _ in range(16)]
    targets = [forward({**weights, **bias}, x) for x in inputs]
    start = {name: rtn.quantize_weight(weight, SPEC) for name, weight in weights.items()}
    return Part(forward, weights, start, inputs, targets, free=bias)


def test_a_block_is_never_worse_than_its_start() -> None:
    learned = brecq.reconstruct(part(), brecq.Options(steps=200, firmness=0.0, rate=0.05))
    assert learned.after <= learned.before
    assert all(codes.spec == SPEC for codes in learned.weights.values())
    assert bool(learned.free["a/bias"].any())


def test_without_steps_or_gain_the_start_stays() -> None:
    given = part()
    learned = brecq.reconstruct(given, brecq.Options(steps=0, firmness=1.0))
    assert learned.after == learned.before
    assert learned.weights["a"] is given.start["a"]


def test_one_layer_is_a_block_that_its_gram_matrix_solves() -> None:
    x, weight = torch.randn(200, 12), torch.randn(4, 12)
    gram = Gram(12)
    gram.update(x)
    found = brecq.quantize_weight(weight, SPEC, statistics=Statistics(gram))
    assert torch.equal(found.codes, gptq.quantize_weight(weight, SPEC, statistics=Statistics(gram)).codes)


def test_errors() -> None:
    with pytest.raises(FewbitError, match="not negative"):
        brecq.reconstruct(part(), brecq.Options(steps=-1))
