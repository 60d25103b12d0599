"""Groups of layers, with and without data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.nn import quantized_layers
from fewbit.nn.intercept import Call
from fewbit.recipe import LayerPlan, Recipe, Scheme, as_recipe
from fewbit.sequential.ranks import Ranks
from fewbit.sequential.solve import Settings, solve_group, with_calibrator
from fewbit.sequential.sums import InputSums, Wanted


def pair() -> tuple[nn.Module, list[LayerPlan]]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"q": nn.Linear(16, 8), "k": nn.Linear(16, 8, bias=False)})
    return model, [LayerPlan(name, "Linear", Scheme.parse("W4A16-g16"), "") for name in ("q", "k")]


def sums(x: torch.Tensor) -> InputSums:
    made = InputSums("q", Wanted(True, False, True))
    made.update(Call("linear", x), False)
    made.flush()
    return made


def test_only_biases_that_are_there_are_corrected() -> None:
    model, plans = pair()
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) + 3
    wanted = model["q"](x).mean(dim=0)
    settings = Settings(as_recipe("W4A16-g16"), "awq")
    assert not solve_group(model, plans, sums(x), settings, Ranks(), 0)
    assert model["k"].bias is None
    torch.testing.assert_close(model["q"](x).mean(dim=0), wanted, atol=1e-4, rtol=1e-4)


def test_layers_without_data_are_rounded_without_and_told() -> None:
    model, plans = pair()
    empty = InputSums("q", Wanted(True, False, True))
    assert solve_group(model, plans, empty, Settings(as_recipe("W4A16-g16"), "awq"), Ranks(), 0) == ["q", "k"]
    assert all(torch.isfinite(layer.weight_qtensor().dequantize()).all() for layer in quantized_layers(model).values())


def test_calibrators() -> None:
    assert with_calibrator(Recipe("W8A8"), "entropy").calibrator == "entropy"
    assert with_calibrator(Recipe("W4A16"), "minmax").weight_calibrator == "minmax"
    assert with_calibrator(Recipe("W4A16"), None) == Recipe("W4A16")
    with pytest.raises(FewbitError, match="no calibrator is called 'finest'"):
        with_calibrator(Recipe("W4A16"), "finest")
