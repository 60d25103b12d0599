"""Learning rounding and scales of a small network, judged on windows that did not teach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewbit.algorithms import rtn
from fewbit.algorithms._reconstruction import Part, Schedule, learn, relative_error
from fewbit.numbers.spec import QSpec


def part(text: str = "int2/g8/asym/f16", free: bool = False) -> Part:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(24, 16, generator=generator), "b": torch.randn(8, 24, generator=generator)}

    def forward(values, x: Tensor) -> Tensor:
        hidden = torch.relu(x @ values["a"].T)
        return (hidden * values.get("gain", torch.ones(24))) @ values["b"].T

    mix = torch.randn(16, 16, generator=generator)
    inputs = [torch.randn(64, 16, generator=generator) @ mix for _ in range(16)]
    spec = QSpec.parse(text)
    return Part(
        forward,
        weights,
        {name: rtn.quantize_weight(w, spec) for name, w in weights.items()},
        inputs,
        [forward(weights, x) for x in inputs],
        free={"gain": torch.ones(24)} if free else {},
    )


@pytest.mark.parametrize("text", ["int2/g8/asym/f16", "int3/channel/sym", "nf4/g8/sym"])
def test_the_loss_falls_on_windows_that_did_not_teach(text: str) -> None:
    network = part(text)
    learned = learn(network, Schedule(steps=150, scales=3e-3))
    assert learned.after < learned.before * 0.95
    for name, t in learned.weights.items():
        start = network.start[name]
        assert (t.spec, t.shape, t.codes.dtype) == (start.spec, start.shape, start.codes.dtype)
        assert torch.equal(t.scale, t.scale.to(t.spec.scale_dtype).float())
    # What was learned is what the codes say.
    values = {name: t.dequantize() for name, t in learned.weights.items()}
    judged = [i for i in range(16) if i % 8 == 7]
    losses = [float(relative_error(network.forward(values, network.inputs[i]), network.targets[i])) for i in judged]
    assert sum(losses) / len(losses) == pytest.approx(learned.after, rel=1e-3)


def test_codes_scales_and_free_values_move_only_when_asked() -> None:
    network = part(free=True)
    codes = learn(network, Schedule(steps=150, scales=0)).weights["a"]
    assert torch.equal(codes.scale, network.start["a"].scale)
    assert not torch.equal(codes.codes, network.start["a"].codes)
    assert (codes.codes.int() - network.start["a"].codes.int()).abs().max() <= 1
    scales = learn(network, Schedule(steps=30, rounding=0, scales=3e-3))
    assert torch.equal(scales.weights["a"].codes, network.start["a"].codes)
    assert not torch.equal(scales.weights["a"].scale, network.start["a"].scale)
    assert torch.equal(scales.free["gain"], torch.ones(24))
    moved = learn(network, Schedule(steps=30, rounding=0, scales=0, free=1e-2))
    assert not torch.equal(moved.free["gain"], torch.ones(24))
    assert moved.after < moved.before


def test_what_does_not_help_is_not_taken() -> None:
    network = part()
    wild = learn(network, Schedule(steps=3, rounding=0, scales=10.0))
    assert wild.after == wild.before
    for name, t in wild.weights.items():
        assert t is network.start[name]
    still = learn(network, Schedule(steps=0))
    assert still.after == still.before


def test_the_same_seed_gives_the_same_bytes_and_progress_is_told() -> None:
    told = []
    one, two = (learn(part(), Schedule(steps=5), lambda *step: told.append(step)) for _ in range(2))
    assert torch.equal(one.weights["a"].codes, two.weights["a"].codes)
    assert told[:5] == [("reconstruct", i, 5) for i in range(1, 6)]
    assert not one.weights["a"].codes.requires_grad
