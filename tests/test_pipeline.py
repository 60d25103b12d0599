"""quantize(): every scheme on small real networks, and everything that must be refused."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs, tiny
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import info, quantized_layers, quantized_weight
from fewbit.numbers.theory import sqnr
from fewbit.recipe import Recipe, Rule

SCHEMES = {
    "W8A8": 35,
    "W8A8-dynamic": 35,
    "W8A16": 38,
    "W8A16-asym": 38,
    "W4A16-g32": 18,
    "W4A8-dynamic-g32": 18,
    "W6A6": 20,
}


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, stride=2, groups=4), nn.BatchNorm2d(16), nn.ReLU6()]
    layers += [
        nn.ConvTranspose2d(16, 8, 3, stride=2, output_padding=1),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, 10),
    ]
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) for _ in range(3)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_keeps_the_outputs(cnn, batches, scheme):
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    quantized = fewbit.quantize(cnn, scheme, batches)
    with torch.no_grad():
        y, z = cnn(batches[0]), quantized(batches[0])
    centred = y - y.mean(0)
    assert sqnr(centred, z - y.mean(0)) > SCHEMES[scheme] - 15
    assert sqnr(y, z) > SCHEMES[scheme]
    assert len(quantized_layers(quantized)) == 4
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items()), "the float model changed"
    assert len(info(quantized).folded) == 2


def test_the_same_input_gives_the_same_bytes(cnn, batches):
    first, second = (fewbit.quantize(cnn, "W8A8", batches).state_dict() for _ in range(2))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_static_activations_are_unsigned_and_one_sided_data_has_zero_point_zero(cnn, batches):
    layers = quantized_layers(fewbit.quantize(cnn, "W8A8", batches))
    behind_relu = quantized_weight(layers["3"]).input_quantizer
    assert behind_relu.spec.format.name == "uint8"
    assert int(behind_relu.zero_point) == 0
    assert int(quantized_weight(layers["0"]).input_quantizer.zero_point) > 0


def test_data_is_gone_through_once(cnn, batches):
    quantized = fewbit.quantize(cnn, "W8A8", (batch for batch in batches))
    again = fewbit.quantize(cnn, "W8A8", batches)
    assert all(torch.equal(a, b) for a, b in zip(quantized.state_dict().values(), again.state_dict().values()))


def test_labels_of_a_loader_are_left_out(cnn, batches):
    dataset = torch.utils.data.TensorDataset(torch.cat(batches), torch.arange(12))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    assert len(quantized_layers(fewbit.quantize(cnn, "W8A8", loader))) == 4


@pytest.mark.parametrize("calibrator", ["minmax", "moving_average", "percentile", "mse", "entropy", "aciq"])
def test_every_calibrator_serves_static_activations(cnn, batches, calibrator):
    quantized = fewbit.quantize(cnn, "W8A8", batches, calibrator=calibrator)
    with torch.no_grad():
        assert sqnr(cnn(batches[0]), quantized(batches[0])) > 20
    assert info(quantized).recipe.get("calibrator", "mse") == calibrator


def test_bias_correction_restores_the_mean(batches):
    """The corrected layer's mean output on the calibration data is the float layer's, to float error."""
    torch.manual_seed(2)
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2, groups=1))
    data = [batch + 1 for batch in batches]
    plain, corrected = (fewbit.quantize(layer, "W3A16", data, bias_correction=on) for on in (False, True))
    with torch.no_grad():
        want, without, with_it = (torch.cat([m(b) for b in data]).mean((0, 2, 3)) for m in (layer, plain, corrected))
    assert (with_it - want).abs().max() < 1e-5
    assert (without - want).abs().max() > 1e-2


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.middle, self.head = (
                nn.Embedding(50, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 50, bias=False),
            )
            self.head.weight = self.embedding.weight

        def forward(self, index):
            return self.head(self.middle(self.embedding(index)))

    model, index = Tied().eval(), torch.arange(20).reshape(4, 5)
    quantized = fewbit.quantize(model, "W4A16-g32")
    assert quantized.head.weight.packed is quantized.embedding.weight.packed
    assert "share one weight" in " ".join(info(quantized).notes)
    assert sqnr(model(index), quantized(index)) > 15
    skipped = fewbit.quantize(model, Recipe("W8A16", rules=(Rule("head", skip=True),)))
    assert skipped.head.weight is skipped.embedding.weight
    assert list(quantized_layers(skipped)) == ["middle"]


def test_rules_skip_and_change_layers(cnn, batches):
    recipe = Recipe("W8A8", rules=(Rule("@first", skip=True), Rule("9", weights="int4/g8/asym", activations="float")))
    quantized = fewbit.quantize(cnn, recipe, batches)
    assert list(quantized_layers(quantized)) == ["3", "6", "9"]
    assert quantized[9].weight_qtensor().spec == fewbit.QSpec.parse("int4/g8/asym")
    assert quantized[9].input_quantizer is None
    assert info(quantized).skipped == {"0": "skipped by rule '@first'"}


def test_padding_is_told(cnn, batches):
    notes = " ".join(info(fewbit.quantize(cnn, "W4A16-g32")).notes)
    assert "padded in 4 layers" in notes  # rows of 27, 36, 144 and 72 values
    assert "896 values in all (most in 3: 448)" in notes


class TestRefused:
    """Each refusal is one sentence that names what is wrong."""

    def test_static_without_data(self, cnn):
        with pytest.raises(FewbitError, match="static activations; pass calibration data"):
            fewbit.quantize(cnn, "W8A8")

    def test_empty_data(self, cnn):
        with pytest.raises(FewbitError, match="calibration data is empty"):
            fewbit.quantize(cnn, "W8A8", [])
        with pytest.raises(FewbitError, match="calibration data is empty"):
            fewbit.quantize(cnn, "W8A8", iter(()))

    def test_a_tensor_is_no_iterable_of_batches(self, cnn, batches):
        with pytest.raises(FewbitError, match=r"write \[batch\]"):
            fewbit.quantize(cnn, "W8A8", batches[0])

    @pytest.mark.parametrize("name", ["0", "9"])
    @pytest.mark.parametrize("scheme", ["W8A16", "W8A8"])
    def test_nan_weights_name_the_layer(self, cnn, batches, name, scheme):
        cnn.get_submodule(name).weight.data[0, 0] = float("nan")
        with pytest.raises(FewbitError, match=f"the weight of {name} holds NaN"):
            fewbit.quantize(cnn, scheme, batches)

    def test_a_norm_that_is_not_finite_is_named_and_not_the_data(self):
        model = tiny("llama")
        model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
        for data in (None, [inputs("llama")]):
            with pytest.raises(FewbitError, match=r"the weight of model\.layers\.1\.input_layernorm holds NaN"):
                fewbit.quantize(model, "W4A16-g16", data)

    def test_nan_data_names_the_layer(self, cnn, batches):
        batches[1][0, 0, 0, 0] = float("inf")
        with pytest.raises(FewbitError, match="the input of 0 holds"):
            fewbit.quantize(cnn, "W8A8", batches)

    def test_a_layer_that_never_saw_data(self, batches):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

            def forward(self, x):
                return self.used(x)

        with pytest.raises(FewbitError, match="layer idle never saw data"):
            fewbit.quantize(Idle(), "W8A8", batches)

    def test_a_batch_the_model_cannot_take(self, cnn):
        with pytest.raises(FewbitError, match="failed on calibration batch 1"):
            fewbit.quantize(cnn, "W8A8-dynamic", [torch.randn(1, 5, 16, 16)])

    def test_unknown_names(self, cnn, batches):
        with pytest.raises(FewbitError, match="no calibrator is called 'mze'"):
            fewbit.quantize(cnn, "W8A8", batches, calibrator="mze")
        with pytest.raises(FewbitError, match="no algorithm is called 'magic'"):
            fewbit.quantize(cnn, "W8A8", batches, algorithm="magic")

    def test_float_weights_with_integer_activations(self, cnn, batches):
        with pytest.raises(FewbitError, match="have no integer product"):
            fewbit.quantize(cnn, Recipe("W8A8", weights="fp8_e4m3/channel/sym"), batches)

    def test_a_recipe_that_skips_everything(self, cnn, batches):
        with pytest.raises(FewbitError, match="leaves every layer in float"):
            fewbit.quantize(cnn, Recipe("W8A8", rules=(Rule("*", skip=True),)), batches)

    def test_something_that_is_no_module(self):
        with pytest.raises(FewbitError, match=r"takes an nn\.Module, .*not dict"):
            fewbit.quantize({"weight": torch.ones(2, 2)}, "W8A8")
        with pytest.raises(FewbitError, match=r"not str; load the model first"):
            fewbit.quantize("no/such/model", "W8A8")


@pytest.mark.parametrize(
    "spec",
    [
        "int8/tensor/sym",
        "int8/channel1/asym",
        "int4/g32/asym",
        "uint8/token/asym",
        "nf4/g64/sym",
        "fp8_e4m3/channel/sym",
    ],
)
def test_quantize_tensor(spec):
    torch.manual_seed(0)
    x = torch.randn(24, 100)
    t = fewbit.quantize_tensor(x, spec)
    assert t.dequantize().shape == x.shape
    assert sqnr(x, t.dequantize()) > 17


def test_whole_networks_on_integers_equal_their_own_arithmetic(cnn, batches):
    """The integer product of a layer equals the float64 product of its dequantized codes."""
    quantized = fewbit.quantize(cnn, "W8A8", batches)
    layer = quantized_layers(quantized)["9"]
    x = torch.randn(5, 72)
    codes, scale, zero_point = layer.input_quantizer(x)
    dequantized = (codes.double() - zero_point.double()) * scale.double()
    want = dequantized @ layer.weight_qtensor().dequantize().double().t() + layer.bias.double()
    assert (layer(x).double() - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "best"])
def test_a_model_without_blocks_is_told_what_rounds_its_weights(algorithm: str) -> None:
    model, batches = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), [torch.randn(8, 64)]
    with pytest.raises(FewbitError, match=f"{algorithm} rounds weights block by block, .*no blocks"):
        fewbit.quantize(model, "W4A16-g32", batches, algorithm=algorithm)
