"""Rounding and clipping of weights and inputs, against the same figures computed value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewbit.evaluate import quantizers
from fewbit.evaluate.error import SplitSums
from fewbit.evaluate.quantizers import grid, input_spec, input_sums, weight_sums
from fewbit.nn import quantized_layers, quantized_weight
from fewbit.nn.quantizers import StaticQuantizer
from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.pipeline import quantize as quantize_model
from fewbit.pipeline import quantize_tensor


def weight(rows: int = 6, columns: int = 20) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


def clipped(x: torch.Tensor, spec: str, share: float) -> QTensor:
    """Quantized with a range that holds `share` of each block's largest value."""
    parsed = QSpec.parse(spec)
    blocks = parsed.granularity.to_blocks(x)
    shape = parsed.granularity.scale_shape(tuple(x.shape))
    low, high = (share * blocks.amin(1)).reshape(shape), (share * blocks.amax(1)).reshape(shape)
    scale, zero_point = scale_and_zero_point(low, high, parsed)
    return quantize(x, parsed, scale=scale, zero_point=zero_point)


def by_hand(x: torch.Tensor, t: QTensor, group: int | None) -> tuple[float, float, float]:
    """Rounding and clipping MSE and the theory's step²/12, one value at a time."""
    rounding, clipping, theory = [], [], []
    measured = t.dequantize().double().numpy()
    for row, column in np.ndindex(*x.shape):
        index: tuple[int, ...] = ()
        if t.scale.dim():
            index = (row,) if group is None else (row, column // group)
        step = float(t.scale[index])
        zero = 0 if t.zero_point is None else int(t.zero_point[index])
        code = round(float(x[row, column]) / step) + zero
        error = (float(x[row, column]) - measured[row, column]) ** 2
        is_clipped = not t.spec.qmin <= code <= t.spec.qmax
        (clipping if is_clipped else rounding).append(error)
        theory.append(step**2 / 12)
    return sum(rounding) / x.numel(), sum(clipping) / x.numel(), float(np.mean(theory))


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize(
    ("spec", "group"),
    [
        ("int4/tensor/sym", None),
        ("int4/channel/sym", None),
        ("uint4/channel/asym", None),
        ("int3/g8/sym", 8),  # 20 columns: the last group is ragged
        ("int4/g5/asym", 5),
        ("int8/channel/sym/narrow", None),
    ],
)
def test_weights_value_by_value(spec: str, group: int | None, share: float) -> None:
    x = weight()
    t = clipped(x, spec, share)
    energies, split = weight_sums(x, t)
    rounding, clipping, theory = by_hand(x, t, group)
    assert split.split.rounding_mse == pytest.approx(rounding, rel=1e-4)
    assert split.split.clipping_mse == pytest.approx(clipping, rel=1e-4)
    assert split.theory / split.count == pytest.approx(theory, rel=1e-6)
    assert (clipping > 0) == (share < 1)
    assert energies.noise == pytest.approx((rounding + clipping) * x.numel(), rel=1e-4)
    assert energies.count == split.count == x.numel()


def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = weight(50, 20)
    t = clipped(x, "int4/g8/asym", 0.8)
    whole = weight_sums(x, t)
    monkeypatch.setattr(quantizers, "_PIECE", 45)  # two rows a piece
    pieces = weight_sums(x, t)
    assert pieces[0].sqnr == pytest.approx(whole[0].sqnr)
    assert pieces[1].split.rounding_mse == pytest.approx(whole[1].split.rounding_mse)
    assert pieces[1].split.clipping_mse == pytest.approx(whole[1].split.clipping_mse)
    assert pieces[1].theory_ratio == pytest.approx(whole[1].theory_ratio)


@pytest.mark.parametrize("spec", ["nf4/channel/sym", "fp8_e4m3/channel/sym", "fp4_e2m1/g4/sym"])
def test_formats_without_a_uniform_step_have_no_ratio(spec: str) -> None:
    x = weight()
    energies, split = weight_sums(x, quantize_tensor(x, spec))
    assert split.theory_ratio is None
    assert 5 < energies.sqnr < 60


def test_weights_on_the_grid_cost_nothing() -> None:
    x = quantize_tensor(weight(), "int8/channel/sym").dequantize()
    energies, split = weight_sums(x, quantize_tensor(x, "int8/channel/sym"))
    assert energies.sqnr > 140
    assert split.theory_ratio == pytest.approx(0, abs=1e-6)


def test_grid_ends_are_the_dequantized_end_codes() -> None:
    step, low, high = grid(torch.tensor(0.5), torch.tensor(3), QSpec.parse("uint4/tensor/asym"))
    assert (float(step), float(low), float(high)) == (0.5, -1.5, 6.0)


def linear(scheme: str) -> nn.Module:
    data = [torch.rand(16, 20, generator=torch.Generator().manual_seed(3))]
    return quantize_model(nn.Sequential(nn.Linear(20, 6)), scheme, data, calibrator="minmax")


def test_static_inputs_are_split() -> None:
    (layer,) = quantized_layers(linear("W8A8")).values()
    quantizer = quantized_weight(layer).input_quantizer
    assert isinstance(quantizer, StaticQuantizer)
    low, high = quantizer.bounds()
    inside = torch.linspace(low, high, 1000)
    sums = SplitSums()
    input_sums(layer, inside, sums)
    assert sums.split.clipping_mse == 0
    assert sums.theory_ratio == pytest.approx(1, abs=0.05)
    input_sums(layer, torch.full((1000,), high + 2.0), sums)
    assert sums.split.clipped_fraction == 0.5
    assert sums.split.clipping_mse == pytest.approx(2.0, rel=1e-4)
    assert sums.theory_ratio == pytest.approx(1, abs=0.05)
    assert input_spec(layer) == "uint8/tensor/asym"


@pytest.mark.parametrize(("scheme", "told"), [("W8A8-dynamic", "int8/token/sym dynamic"), ("W8A16", "float")])
def test_other_inputs_are_not(scheme: str, told: str) -> None:
    (layer,) = quantized_layers(linear(scheme)).values()
    sums = SplitSums()
    input_sums(layer, torch.rand(4, 20), sums)
    assert sums.count == 0
    assert input_spec(layer) == told


def test_indices_are_no_input_to_split() -> None:
    (layer,) = quantized_layers(linear("W8A8")).values()
    sums = SplitSums()
    input_sums(layer, torch.tensor([1, 2]), sums)
    input_sums(layer, None, sums)
    assert sums.count == 0
