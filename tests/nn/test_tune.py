"""Tuning scales and norms of a quantized language model: the divergence falls, codes stay."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs, tiny

import fewbit
from fewbit.algorithms._reconstruction import Schedule
from fewbit.nn import quantized_layers, tune
from fewbit.nn.swap import quantized_weight

QUICK = Schedule(steps=24, batch=1, rounding=0, scales=5e-3, free=5e-3)


def windows(count: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 64, (1, 24), generator=generator)} for _ in range(count)]


def divergence(model, quantized, data) -> float:
    with torch.no_grad():
        pairs = [(model(**w).logits.log_softmax(-1), quantized(**w).logits.log_softmax(-1)) for w in data]
    return sum(float((a.exp() * (a - b)).sum(-1).mean()) for a, b in pairs)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_divergence_falls_and_codes_and_the_float_model_stay(family: str) -> None:
    model = tiny(family).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = fewbit.quantize(model, "W2A16-g8", algorithm="rtn", calibrator="minmax")
    codes = {name: quantized_weight(layer).packed.codes.clone() for name, layer in quantized_layers(quantized).items()}
    start = divergence(model, quantized, windows())
    notes = tune.tune(model, quantized, windows(), QUICK)
    assert "fell from" in notes[0]
    assert divergence(model, quantized, windows()) < start
    for name, layer in quantized_layers(quantized).items():
        packed = quantized_weight(layer).packed
        assert torch.equal(packed.codes, codes[name])
        assert packed.scale.dtype == packed.spec.scale_dtype
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_logits_is_tuned_on_its_output() -> None:
    model = tiny("bert").eval()
    quantized = fewbit.quantize(model, "W2A16-g8", algorithm="rtn", calibrator="minmax")
    data = [dict(inputs("bert")) for _ in range(8)]
    assert "the output" in tune.tune(model, quantized, data, QUICK)[0]


def test_what_judged_is_told() -> None:
    model = tiny("llama").eval()
    quantized = fewbit.quantize(model, "W2A16-g8", algorithm="rtn", calibrator="minmax")
    for count, told in ((8, "on data held back"), (7, "on the data it was tuned on")):
        assert told in tune.tune(model, quantized, windows(count), QUICK)[0]


def test_what_does_not_help_changes_nothing() -> None:
    model = tiny("llama").eval()
    quantized = fewbit.quantize(model, "W4A16-g8", algorithm="rtn")
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    wild = Schedule(steps=2, batch=1, rounding=0, scales=50.0, free=50.0)
    assert "did not lower" in tune.tune(model, quantized, windows(), wild)[0]
    for name, value in quantized.state_dict().items():
        assert torch.equal(value, state[name])


def test_weights_of_eight_bits_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").eval()
    assert tune.tune(model, fewbit.quantize(model, "W8A16"), windows(2)) == []
    quantized = fewbit.quantize(model, "W4A16-g8", algorithm="rtn")
    monkeypatch.setattr(tune, "LARGEST", 10)
    assert "too large" in tune.tune(model, quantized, windows(2))[0]
