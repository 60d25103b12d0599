"""Putting layers into a float model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fewbit.formats import architecture
from fewbit.formats.architecture.description import Description, Slot
from fewbit.formats.architecture.filling import fill
from fewbit.nn import QuantLinear, layer_config
from formats import samples

TANH: Any = {"nn": "Tanh", "arguments": {}}


def test_layers_are_put_where_they_belong() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.ReLU()))
    filled: Any = fill(model, Description("unknown", "X", {}, {"1.0": TANH, "1.1": {"same": "1.0"}}))
    assert filled is model
    assert [type(each) for each in (filled[0], filled[1][0])] == [nn.ReLU, nn.Tanh]
    assert filled[1][0] is filled[1][1]


def test_the_model_itself_may_be_replaced() -> None:
    layer = samples.quantized(lambda: nn.Linear(4, 3), (2, 4))
    description = Description("tree", "Linear", {}, {"": {"layer": layer_config(layer)}})
    assert isinstance(fill(nn.Linear(4, 3), description), QuantLinear)


def test_a_layer_of_the_users_class_keeps_it() -> None:
    layer = samples.quantized(lambda: samples.PaddedConv(3, 4, 2), samples.IMAGE)
    config: Any = {"in-place": layer_config(layer)}
    filled: Any = fill(nn.Sequential(samples.PaddedConv(3, 4, 2)), Description("unknown", "X", {}, {"0": config}))
    assert type(filled[0]) is samples.PaddedConv
    filled[0].load_state_dict(layer.state_dict(), assign=True)
    x = samples.example(samples.IMAGE)
    samples.assert_same(filled(x), layer(x))


def test_a_bias_that_folding_added_finds_its_place() -> None:
    model = nn.Sequential(samples.PaddedConv(3, 4, 2, bias=False))
    filled: Any = fill(model, Description("unknown", "X", {}, {}, {"0.bias": Slot("parameter", torch.float32, (4,))}))
    assert isinstance(filled[0].bias, nn.Parameter)


def test_constants_go_into_buffers_alone() -> None:
    slots = {"offset": Slot("constant", torch.float64, (3,)), "elsewhere": Slot("constant", torch.float32, ())}
    filled: Any = fill(samples.Untraceable(), Description("unknown", "X", {}, {}, slots))
    assert filled.offset.shape == (3,)
    assert "offset" not in filled.state_dict()
    assert not hasattr(filled, "elsewhere")


@pytest.mark.parametrize(
    ("path", "described"),
    [
        ("2", TANH), ("0.weight", TANH), ("__class__", TANH), ("forward", TANH), ("0", {"same": "9"}),
        ("0", {"in-place": {}}),
        ("0", {"in-place": {"class": "QuantLinear"}}), ("0", {"in-place": 3}), ("0", {"nn": "Linear"}), ("0", {}),
        ("9", {"in-place": {"class": "in-place"}}), ("9.weight", {"weight": {}}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(path: str, described: Any) -> None:
    with pytest.raises(ValueError):
        fill(nn.Sequential(nn.ReLU()), Description("unknown", "X", {}, {path: described}))


def test_an_unknown_model_is_described_by_its_layers() -> None:
    model = samples.quantized(samples.Untraceable, samples.IMAGE)
    description = architecture.describe(model)
    assert description.kind == "unknown"
    assert "cannot trace" in str(description.details["reason"])
    modules: Any = description.modules
    assert {path: next(iter(each)) for path, each in modules.items()} == {
        "conv": "layer", "norm": "nn", "own": "in-place",
    }  # fmt: skip
    assert modules["norm"]["nn"] == "Identity"
    assert set(description.tensors) == {"gain", "offset", "own.bias"}
