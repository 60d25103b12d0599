"""What is collected for a layer, and the input quantizer that comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry
from fewbit.nn.intercept import Call
from fewbit.nn.quantizers import DynamicQuantizer, StaticQuantizer
from fewbit.nn.statistics import LayerStatistics, dynamic_spec, float_bias, new_statistics, solve_input
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan, Recipe, Scheme


def plan(scheme: str, kind: str = "Linear", name: str = "layer") -> LayerPlan:
    return LayerPlan(name, kind, Scheme.parse(scheme), "test")


def collected(scheme: str, *inputs: Tensor, kind: str = "Linear", calibrator: str = "minmax") -> LayerStatistics:
    recipe = Recipe(scheme, calibrator=calibrator)
    statistics = new_statistics([plan(scheme, kind)], recipe, bias_correction=False)["layer"]
    for x in inputs:
        statistics.update(Call("linear", x))
    return statistics


# --- what is collected --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "kind", "correct", "ranged", "mean"),
    [
        ("W8A8", "Linear", True, True, True),
        ("W8A8", "Linear", False, True, False),
        ("W8A8-dynamic", "Conv2d", True, False, True),
        ("W8A8-dynamic", "Conv2d", False, False, False),
        ("W8A16", "Linear", True, False, True),
        ("W8A16", "Linear", False, False, False),
        ("W8A16", "Embedding", True, False, False),
    ],
)
def test_a_layer_collects_what_its_scheme_needs(
    scheme: str, kind: str, correct: bool, ranged: bool, mean: bool
) -> None:
    statistics = new_statistics([plan(scheme, kind)], Recipe(scheme), correct)["layer"]
    assert (statistics.range_statistic is not None) is ranged
    assert statistics.wants_mean is mean
    assert bool(statistics) is (ranged or mean)


def test_empty_inputs_and_indices_are_passed_over() -> None:
    statistics = new_statistics([plan("W8A8")], Recipe("W8A8"), True)["layer"]
    statistics.update(Call("linear", torch.zeros(0, 4)))
    statistics.update(Call("embedding", torch.tensor([1, 2])))
    assert statistics.range_statistic is not None
    assert statistics.range_statistic.count == 0
    assert statistics.mean is None


def test_the_mean_input_of_a_linear_layer() -> None:
    statistics = LayerStatistics("layer", None, wants_mean=True)
    first, second = torch.randn(3, 4), torch.randn(2, 5, 4)
    for x in (first, second):
        statistics.update(Call("linear", x))
    assert statistics.mean is not None
    wanted = torch.cat([first, second.reshape(-1, 4)]).double().mean(0)
    assert torch.allclose(statistics.mean.mean()[0], wanted)


def test_the_mean_patch_of_a_convolution_whose_padding_follows_its_input() -> None:
    statistics = LayerStatistics("layer", None, wants_mean=True)
    patches = []
    for size, padding in ((5, (1, 1)), (6, (0, 1))):
        x = torch.randn(2, 3, size)
        statistics.update(Call("conv", x, None, Geometry((3,), (2,), (padding,), (1,), 1)))
        padded = torch.nn.functional.pad(x, padding)
        patches.append(padded.unfold(2, 3, 2).permute(0, 2, 1, 3).reshape(-1, 9))
    assert statistics.mean is not None
    assert torch.allclose(statistics.mean.mean()[0], torch.cat(patches).double().mean(0))


def test_options_that_a_calibrator_does_not_have_are_told() -> None:
    recipe = Recipe("W8A8", calibrator="percentile", calibrator_options={"percentil": 99.0})
    with pytest.raises(FewbitError, match=r"calibrator 'percentile': .*percentil"):
        new_statistics([plan("W8A8")], recipe, bias_correction=False)


# --- what comes of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g32"])
def test_float_activations_have_no_quantizer(scheme: str) -> None:
    assert solve_input(plan(scheme), collected(scheme), Recipe(scheme)) is None


def test_a_static_quantizer_covers_the_range_of_all_batches() -> None:
    statistics = collected("W8A8", torch.tensor([[0.5, -1.0]]), torch.tensor([[3.0, 0.0]]))
    quantizer = solve_input(plan("W8A8"), statistics, Recipe("W8A8", calibrator="minmax"))
    assert isinstance(quantizer, StaticQuantizer)
    low, high = quantizer.bounds()
    assert low == pytest.approx(-1.0, abs=4 / 255 / 2 + 1e-6)
    assert high - low == pytest.approx(4.0)


def test_one_sided_inputs_use_every_code() -> None:
    statistics = collected("W8A8", torch.rand(5, 8))
    quantizer = solve_input(plan("W8A8"), statistics, Recipe("W8A8", calibrator="minmax"))
    assert isinstance(quantizer, StaticQuantizer)
    assert quantizer.bounds()[0] == 0.0
    assert quantizer.spec == QSpec.parse("uint8/tensor/asym")


@pytest.mark.parametrize("calibrator", ["minmax", "mse", "percentile", "entropy", "aciq", "moving_average"])
def test_every_calibrator_solves_an_input(calibrator: str) -> None:
    x = torch.randn(64, 32)
    statistics = collected("W8A8", x, calibrator=calibrator)
    quantizer = solve_input(plan("W8A8"), statistics, Recipe("W8A8", calibrator=calibrator))
    assert isinstance(quantizer, StaticQuantizer)
    codes, scale, zero = quantizer(x)
    assert zero is not None
    back = scale * (codes.float() - zero)
    assert float((back - x).norm() / x.norm()) < 0.1


def test_a_layer_that_saw_no_data_is_named() -> None:
    with pytest.raises(FewbitError, match="layer layer never saw data in calibration; pass batches that reach it"):
        solve_input(plan("W8A8"), collected("W8A8"), Recipe("W8A8"))


def test_dynamic_quantizers_need_no_data() -> None:
    quantizer = solve_input(plan("W8A8-dynamic"), collected("W8A8-dynamic"), Recipe("W8A8-dynamic"))
    assert isinstance(quantizer, DynamicQuantizer)
    assert quantizer.spec == QSpec.parse("int8/token/sym")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Linear", "int8/token/sym"),
        ("Conv1D", "int8/token/sym"),
        ("Conv1d", "int8/channel/sym"),
        ("Conv2d", "int8/channel/sym"),
        ("Conv3d", "int8/channel/sym"),
        ("ConvTranspose2d", "int8/channel/sym"),
    ],
)
def test_a_token_of_a_convolution_is_a_sample(kind: str, wanted: str) -> None:
    assert str(dynamic_spec(QSpec.parse("int8/token/sym"), kind)) == wanted
    assert str(dynamic_spec(QSpec.parse("int8/tensor/sym"), kind)) == "int8/tensor/sym"


def test_the_float_bias() -> None:
    linear = nn.Linear(3, 4).half()
    bias = float_bias(linear)
    assert bias is not None
    assert bias.dtype == torch.float32
    assert not bias.requires_grad
    assert torch.equal(bias, linear.bias.float())
    bias.zero_()
    assert linear.bias.any(), "it is a copy"
    assert float_bias(nn.Linear(3, 4, bias=False)) is None
    assert float_bias(nn.Embedding(3, 4)) is None
