"""Freezing by hand and by count."""

from __future__ import annotations

import pytest
import torch

import fewbit
from fewbit.errors import FewbitError
from fewbit.train import freeze
from fewbit.train.layers import float_matrix, trained_layers

from .samples import ESTIMATORS, fit, net, pictures

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


def test_what_was_frozen_by_hand_is_in_the_state() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X])
    freeze(model, ranges=True, norms=True)
    fresh = fewbit.prepare_qat(net(), "W4A4", [X])
    fresh.load_state_dict(model.state_dict())
    assert state(fresh) == {"ranges": (True,) * 3, "norms": (True,)}
    fresh.load_state_dict(fewbit.prepare_qat(net(), "W4A4", [X]).state_dict())
    assert state(fresh) == {"ranges": (False,) * 3, "norms": (False,)}


def test_an_earlier_state_thaws_and_freezes_again_at_its_step() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X], freeze_ranges_after=2)
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, 4)
    model.load_state_dict(begin)
    seen = []
    for step in range(3):
        fit(model, 1, first=step)
        seen.append(all(state(model)["ranges"]))
    assert seen == [False, False, True]


def test_a_state_fits_a_model_with_another_schedule_which_then_counts() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X], freeze_norms_after=9)
    fit(model, 3)
    other = fewbit.prepare_qat(net(), "W4A4", [X], freeze_ranges_after=2)
    other.load_state_dict(model.state_dict())
    fit(other, 1)
    assert state(other) == {"ranges": (True,) * 3, "norms": (False,)}
    fewbit.prepare_qat(net(), "W4A4", [X]).load_state_dict(model.state_dict())


def test_what_is_thawed_by_hand_stays_thawed() -> None:
    model = fewbit.prepare_qat(net(), "W4A4", [X], freeze_ranges_after=1)
    fit(model, 3)
    freeze(model, ranges=False)
    fit(model, 2, first=3)
    assert state(model)["ranges"] == (False,) * 3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_neither_momentum_nor_weight_decay_moves_what_is_frozen(estimator: str) -> None:
    model = fewbit.prepare_qat(net(), "W4A4-asym", [X], estimator=estimator)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)

    def step(seed: int) -> None:
        x, y = pictures(16, seed)
        optimizer.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step(0)
    freeze(model, ranges=True)
    step(1)  # the ranges of ste's weights freeze with the forward before them
    before, weights = _grids(model), model.head.weight.clone()
    for seed in range(2, 5):
        step(seed)
    assert all(torch.equal(a, b) for a, b in zip(before, _grids(model), strict=True))
    assert not torch.equal(weights, model.head.weight)
    freeze(model, ranges=False)
    if estimator.startswith("lsq"):  # the ranges of other weights follow the weights again
        assert all(torch.equal(a, b) for a, b in zip(before, _grids(model), strict=True))


def _grids(model: torch.nn.Module) -> list[torch.Tensor]:
    """Scales and zero points of every layer as deployed."""
    found = []
    for layer in trained_layers(model).values():
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            grid = quantizer.deployed(float_matrix(layer)[0])
            found += [part.clone() for part in grid if part is not None]
    return found


@pytest.mark.parametrize("count", ["3", 0.5, True])
def test_what_is_no_count_is_refused(count: object) -> None:
    with pytest.raises(FewbitError, match="freeze_norms_after is a number of training steps"):
        fewbit.prepare_qat(net(), "W4A16", freeze_norms_after=count)


def test_a_model_that_was_not_prepared_cannot_be_frozen() -> None:
    with pytest.raises(FewbitError, match="nothing here can be frozen"):
        freeze(net(), ranges=True)
