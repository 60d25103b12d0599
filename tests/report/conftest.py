"""A comparison with every kind of figure, made by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from fewbit.evaluate.layers import LayerCost, QuantizerCost
from fewbit.evaluate.speed import Timing
from fewbit.evaluate.whole import OutputCost
from fewbit.report.result import Comparison, SizePair, TimePair


@pytest.fixture
def row() -> LayerCost:
    """One layer with a static input quantizer."""
    return LayerCost(
        name="features.0.conv",
        kind="Conv2d",
        weight_spec="int8/channel/sym",
        input_spec="uint8/tensor/asym",
        parameters=224,
        bytes_before=896,
        bytes_after=288,
        weight_sqnr=43.21,
        output_sqnr=31.87,
        alone_sqnr=35.5,
        weight=QuantizerCost(2e-6, 1e-6, 0.001, 0.02, 0.98),
        input=QuantizerCost(3e-5, 0.0, 0.0, 0.5, 0.61),
    )


@pytest.fixture
def comparison(row: LayerCost) -> Comparison:
    """Three layers: static, exact and never run, and one with a name that is HTML and markup."""
    exact = dataclasses.replace(
        row, name="exact", weight_sqnr=math.inf, output_sqnr=None, alone_sqnr=None, input=None, input_spec="float"
    )
    strange = dataclasses.replace(row, name="</script><b>[red]x[/red]&", weight_spec="nf4/g32/sym")
    strange = dataclasses.replace(strange, weight=dataclasses.replace(row.weight, theory_ratio=None))
    return Comparison(
        rows=(row, exact, strange),
        outputs=(OutputCost("logits", 24.56, 0.99812, 0.984), OutputCost("hidden", math.inf, 1.0, None)),
        output_sqnr=25.0,
        top1=0.984,
        cosine=0.99812,
        size=SizePair(18_608_000, 4_896_000, None, 4_950_123),
        time=TimePair(Timing(0.0123, 0.012, 0.013, 9), Timing(0.0041, 0.004, 0.005, 9), 2),
        batches=10,
        samples=100,
        notes=("batch norm <i>folded</i>", "[bold]layer[/bold] head stayed float"),
    )


@pytest.fixture
def bare() -> Comparison:
    """No layers, no timing, no classes, one output."""
    return Comparison(
        rows=(),
        outputs=(OutputCost("output", math.inf, 1.0, None),),
        output_sqnr=math.inf,
        top1=None,
        cosine=1.0,
        size=SizePair(1000, 1000),
        time=None,
        batches=1,
        samples=1,
    )
