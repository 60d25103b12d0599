"""The last check: outputs are finite, or the layer to blame is named."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import quantized_layers, quantized_weight
from fewbit.nn.check import check_outputs, first_tensor

Pair = namedtuple("Pair", "a b")
ONE, TWO = torch.ones(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (ONE, ONE),
        ((ONE, TWO), ONE),
        ([torch.tensor(3), (None, TWO)], TWO),
        ({"logits": ONE, "loss": TWO}, ONE),
        (OrderedDict(ids=torch.tensor([1]), hidden=[TWO]), TWO),
        (Pair("text", ONE), ONE),
        (None, None),
        ("text", None),
        (torch.tensor([1, 2]), None),
    ],
)
def test_first_tensor(output: Any, wanted: Tensor | None) -> None:
    assert first_tensor(output) is wanted


def test_first_tensor_of_hugging_face_s_outputs() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    assert first_tensor(outputs.BaseModelOutput(last_hidden_state=ONE)) is ONE


def models() -> tuple[nn.Module, nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    return model, fewbit.quantize(model, "W8A16"), torch.randn(3, 4)


def test_a_good_model_passes() -> None:
    model, quantized, x = models()
    check_outputs(model, quantized, x)
    check_outputs(model, quantized, (x, torch.tensor([0, 1, 0])))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_layer_whose_output_is_not_finite_is_named(value: float) -> None:
    model, quantized, x = models()
    quantized_weight(quantized_layers(quantized)["2"]).packed.scale.fill_(value)
    with pytest.raises(FewbitError, match="layer 2 is the first whose output is not finite; skip that layer"):
        check_outputs(model, quantized, x)


def test_a_module_between_the_layers_is_not_blamed_on_them() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.nan

    model, quantized, x = models()
    quantized[3] = nn.Sequential(quantized[3], Broken())  # type: ignore[operator, index]
    with pytest.raises(FewbitError, match="no quantized layer is to blame"):
        check_outputs(model, quantized, x)


def test_a_float_model_that_is_no_better_is_told() -> None:
    model, quantized, x = models()
    with pytest.raises(FewbitError, match="the float model's own outputs are not finite on the calibration data"):
        check_outputs(model, quantized, x * torch.nan)


def test_a_value_that_only_passes_through_infinity_is_no_error() -> None:
    """Masks are made of infinities; the output counts."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU6()).eval()
    model[0].weight.data.fill_(1.0)
    quantized = fewbit.quantize(model, "W8A16")
    quantized_weight(quantized[0]).packed.scale.fill_(torch.inf)  # type: ignore[index]
    check_outputs(model, quantized, torch.tensor([[1.0, 1.0]]))


def test_hooks_are_gone_and_modes_are_as_they_were() -> None:
    model, quantized, x = models()
    model.train()
    model[2].eval()  # type: ignore[index, operator]
    modes = [m.training for m in model.modules()]
    check_outputs(model, quantized, x)
    quantized_weight(quantized_layers(quantized)["0"]).packed.scale.fill_(torch.nan)
    with pytest.raises(FewbitError):
        check_outputs(model, quantized, x)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in quantized.modules())


def test_quantize_checks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    model[0].weight.data.fill_(1e30)
    model[1].weight.data.fill_(1e30)
    with pytest.raises(FewbitError, match="the float model's own outputs are not finite"):
        fewbit.quantize(model, "W8A16", [torch.full((1, 4), 1e30)])


def test_outputs_that_hold_no_tensor_pass() -> None:
    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.linear(x))

    model = Telling().eval()
    check_outputs(model, fewbit.quantize(model, "W8A16"), torch.ones(1, 2))


class Masked(nn.Module):
    def __init__(self, what: float) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(8, 8), what

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).masked_fill(torch.eye(8, dtype=torch.bool)[: len(x)], self.what)


def test_a_mask_of_infinities_is_the_models_own_and_nan_is_not() -> None:
    batches = [torch.randn(4, 8) for _ in range(2)]
    quantized = fewbit.quantize(Masked(-torch.inf), "W8A8-dynamic", batches)
    assert quantized(batches[0]).isinf().sum() == 4
    with pytest.raises(FewbitError, match="float model's own outputs are not finite"):
        fewbit.quantize(Masked(torch.nan), "W8A8-dynamic", batches)
