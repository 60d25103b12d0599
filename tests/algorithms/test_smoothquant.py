"""SmoothQuant: channels that are much larger than the rest are made smaller, where that helps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import rtn, smoothquant
from fewbit.calibrate.rows import Rows
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

WEIGHTS, DYNAMIC, STATIC = (QSpec.parse(t) for t in ("int8/channel/sym", "int8/token/sym", "uint8/tensor/asym"))
QUICK = smoothquant.Options(grid=6)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def inputs(seed: int, outliers: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(128, 32, generator=generator)
    x[:, torch.randperm(32, generator=generator)[:outliers]] *= 60
    rows = Rows(32)
    rows.update(x)
    return rows


def error(weight: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, activations: QSpec) -> float:
    def near(t: QTensor) -> torch.Tensor:
        return t.dequantize()

    w = near(rtn.quantize_weight(weight * scale, WEIGHTS, rtn.Options("minmax")))
    quantized = near(rtn.quantize_weight(x / scale, activations, rtn.Options("minmax")))
    return float((quantized @ w.T - x @ weight.T).square().mean())


@pytest.mark.parametrize("activations", [DYNAMIC, STATIC])
def test_outliers_are_divided_away(activations: QSpec) -> None:
    rows, weight = inputs(0, 2), torch.randn(24, 32)
    scale = smoothquant.search_scale([weight], [WEIGHTS], activations, rows, QUICK)
    large = rows.max_abs > 20
    assert float(scale[large].min()) > 2 * float(scale[~large].median())
    ours, without = (error(weight, s, rows.rows, activations) for s in (scale, torch.ones(32)))
    assert ours < 0.3 * without


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.sampled_from([DYNAMIC, STATIC]))
def test_never_worse_than_none(seed: int, outliers: int, activations: QSpec) -> None:
    rows = inputs(seed, outliers)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    scale = smoothquant.search_scale([weight], [WEIGHTS], activations, rows, QUICK)
    assert bool((scale > 0).all())
    ours, without = (error(weight, s, rows.rows, activations) for s in (scale, torch.ones(32)))
    assert ours <= without * (1 + 1e-5)


def test_channels_of_one_feeding_channel_have_one_scale() -> None:
    channels = torch.arange(32) // 2
    scale = smoothquant.search_scale([torch.randn(8, 32)], [WEIGHTS], DYNAMIC, inputs(1, 2), QUICK, channels)
    assert scale.shape == (16,)


def test_weights_are_rounded_to_nearest() -> None:
    weight = torch.randn(4, 32)
    ours, nearest = smoothquant.quantize_weight(weight, WEIGHTS), rtn.quantize_weight(weight, WEIGHTS)
    assert torch.equal(ours.codes, nearest.codes)
