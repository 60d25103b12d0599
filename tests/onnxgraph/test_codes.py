from __future__ import annotations

import pytest
import torch

from fewbit.calibrate.range import Range
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph.codes import Codes

UNSIGNED, SIGNED = QSpec.parse("uint8/tensor/asym"), QSpec.parse("int8/tensor/sym")


def codes(lo: float, hi: float, spec: QSpec = UNSIGNED) -> Codes:
    return Codes.of(Range.of(torch.tensor(lo), torch.tensor(hi), spec), spec, "t")


@pytest.mark.parametrize("spec", [UNSIGNED, SIGNED])
def test_codes_are_those_of_the_affine_map(spec: QSpec) -> None:
    made = codes(-1.3, 4.2, spec)
    x = torch.linspace(-9, 9, 1001)
    zero = None if spec.symmetric else torch.tensor(made.zero_point, dtype=torch.int32)
    expected = affine.quantize(x, spec, scale=torch.tensor(made.scale), zero_point=zero).codes
    assert torch.equal(made.codes(x), expected)


def test_what_a_range_implies() -> None:
    assert codes(0, 6).implies((0, 6))
    assert codes(0, 5.9).implies((0, 6))
    assert codes(0, 3).implies((0, float("inf")))
    assert not codes(0, 6.1).implies((0, 6))
    assert not codes(-1, 6).implies((0, 6))
    assert not codes(0, 6, SIGNED).implies((0, 6))
