"""convert: the modules of quantize, and the outputs and codes of the trained model to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import quantized_layers
from fewbit.nn.quantizers import StaticQuantizer

from .samples import ESTIMATORS, HalvedLinear, OneSidedConv2d, ScaledEmbedding, fit, net, pictures

X, _ = pictures(32, seed=9)


class Zoo(nn.Module):
    """Every kind of layer, some with a forward of their own, some with batch norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = OneSidedConv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"), nn.BatchNorm2d(8)
        self.t, self.tn = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2), nn.BatchNorm2d(6)
        self.words, self.more = nn.Embedding(5, 6), ScaledEmbedding(5, 6)
        self.f, self.h = nn.Linear(6, 10), HalvedLinear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        word = (x[:, 0, 0, 0].abs() * 10).long() % 5
        x = F.relu(self.an(self.a(x)))
        x = F.relu(self.bn(self.b(x)))
        x = F.relu(self.tn(self.t(x))).mean((2, 3))
        return self.h(F.relu(self.f(x + self.words(word) + self.more(word))))


def zoo() -> Zoo:
    torch.manual_seed(0)
    model = Zoo()
    for _ in range(30):
        model(X)
    return model.eval()


def codes_of_all_layers(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """The codes of every input that meets a weight, and of every weight."""
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name, layer in quantized_layers(model).items():
        found[name] = [layer.weight.weight_qtensor().codes]
        if isinstance(layer.weight.input_quantizer, StaticQuantizer):
            tell = lambda _m, _a, out, name=name: found[name].append(out[0])  # noqa: E731
            hooks.append(layer.weight.input_quantizer.register_forward_hook(tell))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("recipe", ["W8A8", "W4A4", "W2A4", "W3A16", "W4A16-g16-asym", "W8A8-dynamic"])
def test_outputs_are_those_of_the_trained_model_to_the_last_bit(recipe: str, estimator: str) -> None:
    prepared = fewbit.prepare_qat(zoo(), recipe, [X], estimator=estimator)
    fit(prepared, 3)
    prepared.eval()
    converted = fewbit.convert(prepared)
    with torch.no_grad():
        assert torch.equal(prepared(X), converted(X))
    assert torch.equal(prepared(X), converted(X))  # with gradients, too
    same = fewbit.quantize(zoo(), recipe, [X])
    assert {n: type(m) for n, m in converted.named_modules()} == {n: type(m) for n, m in same.named_modules()}
    assert not any(parameter.requires_grad for parameter in converted.parameters())


def test_training_mode_in_float_gives_the_same_codes_but_for_ties() -> None:
    """The independent check: float products of fake-quantized values against the integer kernels, layer by layer."""
    prepared = fewbit.prepare_qat(net(), "W4A4", [X], freeze_norms_after=0, freeze_ranges_after=0)
    fit(prepared, 5)
    seen: list[Tensor] = []
    for layer in (prepared.conv, prepared.hidden, prepared.head):
        layer.input_quantizer.register_forward_hook(lambda m, _a, out: seen.append((out / m.grid(out)[0]).round()))
    trained = prepared.train()(X)
    converted = fewbit.convert(prepared)
    codes = codes_of_all_layers(converted, X)
    assert torch.allclose(trained, converted(X), atol=1e-5)
    for name, values in zip(("conv", "hidden", "head"), seen):
        quantizer = converted.get_submodule(name).weight.input_quantizer
        zero = 0 if quantizer.zero_point is None else quantizer.zero_point
        assert torch.equal(values + zero, codes[name][1].float()), name


def test_every_code_of_every_layer_is_that_of_an_independent_build() -> None:
    prepared = fewbit.prepare_qat(zoo(), "W4A4", [X])
    fit(prepared, 3)
    mine = codes_of_all_layers(fewbit.convert(prepared), X)
    again = codes_of_all_layers(fewbit.convert(copy.deepcopy(prepared).eval()), X)
    assert mine.keys() == again.keys()
    assert all(torch.equal(a, b) for key in mine for a, b in zip(mine[key], again[key]))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 8), nn.Linear(8, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x))

    prepared = fewbit.prepare_qat(Tied(), "W8A16")
    assert prepared.head.weight is prepared.words.weight
    assert prepared.head.weight_quantizer is prepared.words.weight_quantizer
    ids = torch.arange(7)
    F.cross_entropy(prepared(ids), ids).backward()
    torch.optim.SGD(prepared.parameters(), 0.1).step()
    converted = fewbit.convert(prepared)
    assert converted.head.weight.packed is converted.words.weight.packed
    assert torch.equal(prepared.eval()(ids), converted(ids))


def test_a_converted_model_is_saved_and_loaded(tmp_path) -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    fit(prepared, 2)
    sequential = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    converted = fewbit.convert(fewbit.prepare_qat(sequential, "W4A8", [X]))
    fewbit.save(converted, tmp_path / "model")
    assert torch.equal(fewbit.load(tmp_path / "model")(X), converted(X))


def test_a_single_layer_is_a_model() -> None:
    prepared = fewbit.prepare_qat(nn.Linear(8, 4), "W4A8", [torch.randn(16, 8)], freeze_ranges_after=1)
    prepared(torch.randn(3, 8)).sum().backward()
    converted = fewbit.convert(prepared)
    assert type(converted).__name__ == "QuantLinear"
    assert not converted._forward_pre_hooks


def test_hooks_of_the_user_come_along_and_counts_go() -> None:
    model = net()
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    prepared = fewbit.prepare_qat(model, "W4A16", freeze_norms_after=5)
    assert "fewbit_training_steps" in prepared.state_dict()
    converted = fewbit.convert(prepared)
    seen.clear()
    converted(X)
    assert seen == [1]
    assert "fewbit_training_steps" not in converted.state_dict()


def test_what_was_not_prepared_is_refused() -> None:
    with pytest.raises(FewbitError, match="a model that prepare_qat made"):
        fewbit.convert(net())
