from __future__ import annotations

import pytest
import torch

from fewbit.algorithms import rtn
from fewbit.algorithms._soft_rounding import SoftRounding
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

SPECS = ["int4/channel/sym", "uint4/g4/asym", "int8/tensor/asym"]


@pytest.mark.parametrize("text", SPECS)
def test_at_its_start_it_is_the_weight_and_settles_to_nearest(text: str) -> None:
    weight = torch.randn(3, 10)
    start = rtn.quantize_weight(weight, QSpec.parse(text), rtn.Options("minmax"))
    soft = SoftRounding(weight, start)
    inside = (soft.weight() - weight).abs()
    assert float(inside.max()) <= 0.51 * float(start.scale.max())  # what the range does not reach is clipped
    assert float(inside.median()) < 1e-3 * float(start.scale.max())
    assert torch.equal(soft.settled().codes, start.codes)


def test_the_penalty_drives_to_the_ends() -> None:
    weight = torch.randn(4, 6)
    soft = SoftRounding(weight, rtn.quantize_weight(weight, QSpec.parse("int4/channel/sym")))
    assert float(soft.penalty(0.1)) == 0
    optimizer = torch.optim.Adam([soft.variable], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        soft.penalty(0.2 + 0.8 * step / 150).backward()
        optimizer.step()
    up = soft.up()
    assert bool(((up < 0.01) | (up > 0.99)).all())
    assert torch.allclose(soft.weight(), soft.settled().dequantize(), atol=0.02)


def test_every_choice_is_a_neighbour() -> None:
    weight = torch.randn(4, 6)
    start = rtn.quantize_weight(weight, QSpec.parse("int4/channel/sym"), rtn.Options("minmax"))
    soft = SoftRounding(weight, start)
    with torch.no_grad():
        soft.variable.normal_(0, 10)
    assert int((soft.settled().codes.int() - start.codes.int()).abs().max()) <= 1


def test_grids_that_are_not_of_integers_are_refused() -> None:
    weight = torch.randn(2, 4)
    with pytest.raises(FewbitError, match="fp4"):
        SoftRounding(weight, rtn.quantize_weight(weight, QSpec.parse("fp4_e2m1/channel/sym")))
