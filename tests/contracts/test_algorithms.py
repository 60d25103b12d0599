"""Every algorithm there is, found by itself, keeps the family's promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewbit import algorithms
from fewbit.algorithms import rtn
from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

SPECS = ["int8/channel/sym", "int4/g32/asym", "int4/g32/sym", "int3/channel/asym", "int8/tensor/sym"]


@pytest.fixture(params=algorithms.names())
def algorithm(request):
    return algorithms.get(request.param)


def test_there_are_algorithms():
    assert "rtn" in algorithms.names()


def test_options_are_frozen_and_have_defaults(algorithm):
    options = algorithm.Options()
    field = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, field, None)


def correlated_inputs(rows: int, columns: int, dead: int | None = None) -> torch.Tensor:
    """Inputs as layers meet them: few directions, some of them large, and a mean."""
    directions = torch.randn(max(columns // 4, 1), columns) * torch.rand(columns).add(0.1)
    x = torch.randn(rows, directions.shape[0]) @ directions + 0.1 * torch.randn(rows, columns) + 0.2
    if dead is not None:
        x[:, dead] = 0
    return x


def statistics(x: torch.Tensor) -> Statistics:
    halves = [Gram(x.shape[1], "w"), Gram(x.shape[1], "w")]
    for gram, rows in zip(halves, x.chunk(2)):
        gram.update(rows)
    return Statistics(*halves)


def objective(algorithm, weight, t, seen: Statistics) -> float:
    """What the algorithm promises to lower: its own objective; the output error where it uses data; else ‖D‖²."""
    change = t.dequantize() - weight
    if hasattr(algorithm, "objective"):
        return algorithm.objective(change)
    if algorithm.NEEDS:
        return float(output_error(change, seen.gram.matrix).sum())
    return float(change.double().square().sum())


@pytest.mark.parametrize("text", SPECS)
def test_a_qtensor_of_the_same_shape_no_worse_than_rounding_to_nearest(algorithm, text):
    torch.manual_seed(0)
    weight, spec = torch.randn(12, 80), QSpec.parse(text)
    seen = statistics(correlated_inputs(512, 80, dead=7))
    t = algorithm.quantize_weight(weight, spec, algorithm.Options(), "w", seen)
    assert t.shape == (12, 80)
    assert t.spec == spec
    for calibrator in (None, "minmax"):
        nearest = rtn.quantize_weight(weight, spec, rtn.Options(calibrator) if algorithm is not rtn else None)
        limit = objective(algorithm, weight, nearest, seen)
        assert objective(algorithm, weight, t, seen) <= limit * (1 + 1e-6)


def test_what_needs_data_says_so_by_name(algorithm):
    assert set(algorithm.NEEDS) <= {"gram", "held_back"}
    for missing in (None, Statistics(Gram(8, "my layer"))):
        if algorithm.NEEDS:
            with pytest.raises(FewbitError, match=r"my layer.*data.*rtn"):
                algorithm.quantize_weight(torch.ones(2, 8), QSpec.parse(SPECS[0]), None, "my layer", missing)
        else:
            algorithm.quantize_weight(torch.ones(2, 8), QSpec.parse(SPECS[0]), None, "my layer", missing)


def test_zero_rows_are_exact_and_the_same_input_gives_the_same_bytes(algorithm):
    weight = torch.randn(4, 32)
    weight[1] = 0
    seen = statistics(correlated_inputs(64, 32))
    first, second = (
        algorithm.quantize_weight(weight, QSpec.parse("int4/channel/sym"), None, "w", seen) for _ in range(2)
    )
    assert torch.equal(first.codes, second.codes)
    assert float(first.scale[1]) == 1
    assert not first.codes[1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(algorithm, value):
    weight = torch.ones(2, 8)
    weight[0, 3] = value
    with pytest.raises(FewbitError, match="my weight"):
        algorithm.quantize_weight(
            weight, QSpec.parse("int8/channel/sym"), None, "my weight", statistics(torch.randn(16, 8))
        )
