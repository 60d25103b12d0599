"""Plans against models: what shares a weight is planned together, and what cannot be computed is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn.plan import check_parameters, check_plans, check_weights, join_tied
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan, Recipe, Rule, Scheme
from nn.samples import difference


def plan(name: str, scheme: str | None, kind: str = "Linear", reason: str = "test") -> LayerPlan:
    return LayerPlan(name, kind, None if scheme is None else Scheme.parse(scheme), reason)


def spec_plan(weights: str, activations: str | None = None, dynamic: bool = False, kind: str = "Linear") -> LayerPlan:
    parsed = None if activations is None else QSpec.parse(activations)
    return LayerPlan("body.0", kind, Scheme(QSpec.parse(weights), parsed, dynamic), "test")


def tied(count: int) -> nn.Module:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))
    for layer in model[1:]:
        layer.weight = model[0].weight
    return model


# --- tied layers --------------------------------------------------------------------------------


def test_layers_that_share_nothing_are_planned_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plans = [plan("0", "W8A8"), plan("1", "W4A16")]
    assert join_tied(model, plans) == (plans, [])


def test_tied_layers_that_agree_need_no_note() -> None:
    plans = [plan("0", "W8A8"), plan("1", "W8A8")]
    assert join_tied(tied(2), plans) == (plans, [])


def test_tied_layers_may_differ_in_their_activations() -> None:
    plans = [plan("0", "W8A8"), plan("1", "W8A16")]
    assert join_tied(tied(2), plans) == (plans, [])


@pytest.mark.parametrize("order", [["W4A16-g32", "W8A8"], ["W8A8", "W4A16-g32"]])
def test_tied_layers_take_the_finest_weights_and_keep_their_activations(order: list[str]) -> None:
    plans, notes = join_tied(tied(2), [plan(str(i), scheme) for i, scheme in enumerate(order)])
    schemes = [p.scheme for p in plans]
    assert all(s is not None and str(s.weights) == "int8/channel/sym" for s in schemes)
    activations = [s.activations is not None for s in schemes if s is not None]
    assert activations == [scheme == "W8A8" for scheme in order]
    assert notes == ["0 and 1 share one weight, which is quantized as int8/channel/sym"]


def test_one_float_layer_keeps_all_that_share_its_weight_in_float() -> None:
    plans = [plan("0", "W8A8"), plan("1", None, reason="skipped by rule 'head'"), plan("2", "W4A16")]
    joined, notes = join_tied(tied(3), plans)
    assert all(p.scheme is None for p in joined)
    assert notes == ["0 and 1 and 2 share one weight and stay in float, as 1 does (skipped by rule 'head')"]


def test_a_tie_is_told_to_the_user() -> None:
    model = tied(2)
    recipe = Recipe("W4A16-g32", rules=(Rule("1", scheme="W8A16"),))
    info = fewbit.nn.info(fewbit.quantize(model, recipe))
    assert info is not None
    assert any("share one weight" in note for note in info.notes)


class Mirrored(nn.Module):
    """An autoencoder whose decoder reads the encoder's kernel the other way round."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(4, inside, 3, stride=2, padding=1)
        self.decoder = nn.ConvTranspose2d(inside, 4, 3, stride=2, padding=1)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.encoder(x).relu())
        return result


@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("scheme", ["W8A16", "W8A8", "W8A8-dynamic", "W4A16-g32"])
@torch.no_grad()
def test_layers_that_read_one_weight_in_two_ways(inside: int, scheme: str) -> None:
    model, x = Mirrored(inside).eval(), torch.randn(2, 4, 9, 9)
    quantized = fewbit.quantize(model, scheme, [x])
    assert difference(quantized(x), model(x)) < (0.2 if scheme.startswith("W4") else 0.03)


# --- what no product can compute ----------------------------------------------------------------


GOOD = [
    spec_plan("int8/channel/sym"),
    spec_plan("int4/g32/asym"),
    spec_plan("nf4/g64/sym"),
    spec_plan("fp8_e4m3/tensor/sym"),
    spec_plan("int8/channel/sym", "uint8/tensor/asym"),
    spec_plan("int8/tensor/asym", "int8/token/sym", dynamic=True),
    spec_plan("int4/g32/sym", "int8/token/asym", dynamic=True),
    spec_plan("int4/g64/sym", "int8/g32/sym", dynamic=True),
    spec_plan("int8/channel/sym", "int8/g32/sym", dynamic=True),
    spec_plan("int8/channel/sym", "int16/tensor/sym"),
]
BAD = [
    (spec_plan("int8/token/sym"), "per tensor, per channel .axis 0, the output. or per group, not token"),
    (spec_plan("int8/channel1/sym"), "not channel1"),
    (spec_plan("nf4/g64/sym", "uint8/tensor/asym"), "weights in nf4 have no integer product; leave the activations"),
    (spec_plan("int8/channel/sym", "fp8_e4m3/tensor/sym"), "activations in fp8_e4m3 have no integer product"),
    (spec_plan("int8/channel/sym", "int8/token/sym"), "static activations have one scale for the tensor"),
    (spec_plan("int8/channel/sym", "int8/g48/sym", dynamic=True), "in groups of a multiple of 32"),
    (spec_plan("int4/g32/sym", "int8/g64/sym", dynamic=True), "weights of at most 8 bits in groups that 64 divides"),
    (spec_plan("int16/channel/sym", "int8/g64/sym", dynamic=True), "weights of at most 8 bits"),
    (spec_plan("int8/channel/sym", "uint8/tensor/asym/f16"), "activations have float32 scales"),
    (spec_plan("int8/channel/sym", "int8/channel1/sym", dynamic=True), "channel1"),
]


@pytest.mark.parametrize("one", GOOD, ids=lambda p: str(p.scheme.weights))
def test_what_can_be_computed_passes(one: LayerPlan) -> None:
    check_plans([one, plan("other", None)])


@pytest.mark.parametrize(("one", "message"), BAD)
def test_what_cannot_be_computed_is_refused_by_name(one: LayerPlan, message: str) -> None:
    with pytest.raises(FewbitError, match=rf"layer body\.0 \(Linear\): .*{message}"):
        check_plans([plan("other", "W8A8"), one])


def test_a_recipe_that_quantizes_nothing_is_refused() -> None:
    with pytest.raises(FewbitError, match="leaves every layer in float"):
        check_plans([plan("0", None), plan("1", None)])


@pytest.mark.parametrize("activations", ["int8/token/asym", "uint8/token/asym", "int8/channel/sym", "int8/tensor/asym"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
@torch.no_grad()
def test_every_dynamic_spec_is_either_refused_or_right(activations: str, layer: str) -> None:
    model: nn.Module = nn.Linear(16, 6) if layer == "linear" else nn.Conv2d(3, 6, 3, padding=1)
    x = torch.randn(3, 5, 16) + 1 if layer == "linear" else torch.randn(3, 3, 7, 7) + 1
    try:
        quantized = fewbit.quantize(model, Recipe("W8A8-dynamic", activations=activations), [x])
    except FewbitError:
        return
    assert difference(quantized(x), model(x)) < 0.02
    assert difference(quantized(x[:1]), model(x[:1])) < 0.02


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_weights(model, [plan("0", "W8A8"), plan("1", "W8A8")])
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(FewbitError, match="the weight of 1 holds NaN"):
        check_weights(model, [plan("0", "W8A8"), plan("1", "W8A8")])
    check_weights(model, [plan("0", "W8A8")])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("0.weight", "nan", "the weight of 0 holds NaN"),
        ("1.bias", "inf", "the bias of 1 holds infinity"),
        ("2.weight", "-inf", "the weight of 2 holds infinity"),
    ],
)
def test_parameters_that_are_not_finite_are_named(name: str, value: str, said: str) -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    check_parameters(model)
    model.get_parameter(name).data.view(-1)[1] = float(value)
    with pytest.raises(FewbitError, match=said):
        check_parameters(model)


def test_a_mask_may_be_infinite() -> None:
    model = nn.Linear(2, 2)
    model.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
    check_parameters(model)
    model.mask.data[0] = torch.nan
    with pytest.raises(FewbitError, match="the mask of the model holds NaN"):
        check_parameters(model)
