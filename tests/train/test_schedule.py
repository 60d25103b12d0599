"""Freezing by hand and by count."""

from __future__ import annotations

import pytest
import torch

import fewbit
from fewbit.errors import FewbitError
from fewbit.train import freeze
from fewbit.train.layers import trained_layers

from .samples import fit, net, pictures

X, _ = pictures(32, seed=9)


def state(model: torch.nn.Module) -> dict[str, tuple[bool, ...]]:
    layers = trained_layers(model).values()
    norms = tuple(layer.folded_norm.frozen for layer in layers if layer.folded_norm is not None)
    return {"ranges": tuple(layer.weight_quantizer.frozen for layer in layers), "norms": norms}


def test_ranges_and_norms_freeze_at_their_steps() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X], freeze_ranges_after=3, freeze_norms_after=2)
    seen = []
    for step in range(5):
        fit(model, 1, first=step)
        seen.append((all(state(model)["norms"]), all(state(model)["ranges"])))
    assert seen == [(False, False), (False, False), (True, False), (True, True), (True, True)]


def test_evaluation_and_repeated_forwards_do_not_count() -> None:
    model = fewbit.prepare_qat(net(checkpointed=True), "W4A4", [X], freeze_norms_after=9)
    fit(model, 2)
    model.eval()(X)
    with torch.no_grad():
        model.train()(X)
    assert model.fewbit_training_steps == 2


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(FewbitError, match="0 or more"):
        fewbit.prepare_qat(net(), "W4A16", freeze_ranges_after=-1)


def test_by_hand_and_back() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X])
    freeze(model, ranges=True)
    assert state(model) == {"ranges": (True,) * 3, "norms": (False,)}
    freeze(model, norms=True)
    frozen = [layer.weight_quantizer.scale.clone() for layer in trained_layers(model).values()]
    before = model.conv.folded_norm.norm.running_mean.clone()
    fit(model, 2)
    assert all(torch.equal(a, b.weight_quantizer.scale) for a, b in zip(frozen, trained_layers(model).values()))
    assert torch.equal(before, model.conv.folded_norm.norm.running_mean)
    freeze(model, ranges=False, norms=False)
    assert state(model) == {"ranges": (False,) * 3, "norms": (False,)}
