"""The outputs of quantized PyTorch models."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitWarning
from fewbit.evaluate import verdict
from fewbit.evaluate.check import doubt
from fewbit.nn import info, quantized_layers, quantized_weight


def wide(factor: float) -> nn.Module:
    """A network of three convolutions; one channel of the second is so many times wider than the others."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)]
    with torch.no_grad():
        convs[1].weight[3] *= factor
        convs[1].bias[3] *= factor  # type: ignore[index]
        convs[2].weight[:, 3] /= factor
    layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(8), nn.ReLU(inplace=True))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def told(model: nn.Module, batches: list[Tensor], **more: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewbitWarning)
        made = info(fewbit.quantize(model, "W8A8", batches, **more))
    found = [str(w.message) for w in caught if issubclass(w.category, FewbitWarning)]
    assert made is not None
    assert [note for note in made.notes if "hardly of use" in note] == found
    return found


def test_a_channel_that_leaves_the_others_no_codes_is_told() -> None:
    batches = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    (sentence,) = told(wide(1e6), batches)
    assert "output 'output' of the quantized model" in sentence
    assert "the output of layer 6 and behind it" in sentence  # the first that reads the wide tensor's codes
    assert told(wide(1e6), batches, algorithm="equalize+rtn") == []
    assert told(wide(1), batches) == []


def test_the_layer_and_the_output_by_name(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = fewbit.quantize(cnn, "W8A8", pictures)
    assert doubt(cnn, quantized, pictures[0]) is None
    quantized_weight(quantized_layers(quantized)["3"]).packed.codes.zero_()
    sentence = doubt(cnn, quantized, pictures[0])
    assert sentence is not None
    assert "layer 3" in sentence
    named = doubt(cnn, quantized, pictures[0], rotated=True)
    assert named is not None
    assert "layer 3" not in named


def test_models_stay_as_they_are(cnn: nn.Module, pictures: list[Tensor]) -> None:
    quantized = fewbit.quantize(cnn, "W8A8", pictures)
    quantized_weight(quantized_layers(quantized)["6"]).packed.codes.zero_()
    cnn.train()
    cnn[4].eval()  # type: ignore[index, operator]
    modes, buffers = [m.training for m in cnn.modules()], [b.clone() for b in cnn.buffers()]
    assert doubt(cnn, quantized, pictures[0]) is not None
    assert [m.training for m in cnn.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, cnn.buffers()))
    assert not any(m._forward_hooks for model in (cnn, quantized) for m in model.modules())


@pytest.mark.parametrize("recipe", ["W8A16", "W8A8-dynamic"])
def test_outputs_of_any_container_and_size(recipe: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(16, 60000), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.wide(x), "loss": self.narrow(x).mean()}

    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(40, 16)
    quantized = fewbit.quantize(model, recipe, [x])
    assert doubt(model, quantized, x) is None
    quantized_weight(quantized_layers(quantized)["wide"]).packed.scale.zero_()
    sentence = doubt(model, quantized, x)
    assert sentence is not None
    assert "output 'logits' of" in sentence
    assert "layer wide" in sentence


def test_an_output_without_values_is_passed_over() -> None:
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.linear(x)
            return y, y[:0], y[0, :0]

    model, x = Boxes().eval(), torch.randn(6, 4)
    quantized = fewbit.quantize(model, "W8A16", [x])
    assert doubt(model, quantized, x) is None
    assert verdict.thinned(x[:0], -1).shape == (4, 0)
    assert verdict.thinned(x[:, :0], -1).shape == (0, 6)


def test_a_model_made_in_inference_mode_is_compared() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [torch.randn(4, 8) for _ in range(2)]
    assert fewbit.quantize(model, "W8A8-dynamic", batches)(batches[0]).shape == (4, 4)


class Noisy(nn.Module):
    """Draws its output anew each time, or counts its calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how, self.calls = nn.Linear(8, 8), how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.linear(x)
        if self.how == "random":
            return y + 10 * torch.randn_like(y)
        return nn.functional.dropout(y, 0.9, training=True) if self.how == "dropout" else y * (-1) ** self.calls


@pytest.mark.parametrize("how", ["random", "dropout", "state"])
def test_models_that_do_not_repeat_themselves_raise_no_false_alarm(how: str) -> None:
    torch.manual_seed(0)
    model, x = Noisy(how).eval(), torch.randn(16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewbitWarning)
        quantized = fewbit.quantize(model, "W8A16", [x])
        quantized_weight(quantized_layers(quantized)["linear"]).packed.codes.zero_()
        assert doubt(model, quantized, x) is None


def test_the_quantized_model_runs_once_to_be_checked() -> None:
    runs: list[str] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            runs.append(type(self.linear).__name__)
            return self.linear(x)

    fewbit.quantize(Counting().eval(), "W8A16", [torch.randn(4, 8)], bias_correction=False)
    assert sum(name != "Linear" for name in runs) == 1
