from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import adaround, rtn
from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


def sample(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ mix + 0.5
    gram = Gram(columns)
    gram.update(x)
    return torch.randn(rows, columns, generator=generator), Statistics(gram)


def error(weight: torch.Tensor, codes, statistics: Statistics) -> torch.Tensor:
    return output_error(codes.dequantize() - weight, statistics.gram.matrix)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["int4/channel/sym", "int3/g8/asym", "uint4/tensor/asym", "int2/channel/sym"]),
    st.integers(1, 6),
    st.integers(2, 20),
    st.integers(0, 1000),
)
def test_no_row_is_worse_than_rounded_to_nearest(text: str, rows: int, columns: int, seed: int) -> None:
    weight, statistics = sample(rows, columns, seed)
    spec = QSpec.parse(text)
    found = adaround.quantize_weight(weight, spec, adaround.Options(steps=5), statistics=statistics)
    nearest = rtn.quantize_weight(weight, spec)
    one, other = error(weight, found, statistics), error(weight, nearest, statistics)
    if "tensor" in text:
        assert float(one.sum()) <= float(other.sum()) * (1 + 1e-5)
    else:
        assert bool((one <= other * (1 + 1e-4) + 1e-9).all())


def test_it_is_much_better_where_inputs_go_together() -> None:
    weight, statistics = sample(16, 32, 0)
    spec = QSpec.parse("int4/channel/sym")
    found = adaround.quantize_weight(weight, spec, statistics=statistics)
    nearest = rtn.quantize_weight(weight, spec)
    assert float(error(weight, found, statistics).sum()) < 0.6 * float(error(weight, nearest, statistics).sum())


def test_learning_itself_lowers_the_error() -> None:
    weight, statistics = sample(16, 32, 1)
    spec = QSpec.parse("int4/channel/sym")
    errors = [
        float(error(weight, adaround.quantize_weight(weight, spec, options, statistics=statistics), statistics).sum())
        for options in (adaround.Options(steps=1, sweeps=0), adaround.Options(steps=200, sweeps=0))
    ]
    assert errors[1] < 0.9 * errors[0]


def test_the_same_input_gives_the_same_codes() -> None:
    weight, statistics = sample(4, 12, 2)
    one, two = (
        adaround.quantize_weight(weight, QSpec.parse("int4/channel/sym"), adaround.Options(10), statistics=statistics)
        for _ in range(2)
    )
    assert torch.equal(one.codes, two.codes)


def test_errors() -> None:
    weight, statistics = sample(4, 12, 3)
    spec = QSpec.parse("int4/channel/sym")
    with pytest.raises(FewbitError, match="fc: adaround needs calibration data"):
        adaround.quantize_weight(weight, spec, name="fc")
    with pytest.raises(FewbitError, match="fc holds NaN"):
        adaround.quantize_weight(weight * float("nan"), spec, name="fc", statistics=statistics)
    with pytest.raises(FewbitError, match="grids of integers, not on nf4"):
        adaround.quantize_weight(weight, QSpec.parse("nf4/channel/sym"), statistics=statistics)
    with pytest.raises(FewbitError, match="1 step or more"):
        adaround.quantize_weight(weight, spec, adaround.Options(steps=0), statistics=statistics)
