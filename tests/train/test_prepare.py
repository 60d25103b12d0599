"""prepare_qat: trains under every loop, starts from post-training ranges, refuses what cannot train."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import info, quantized_layers
from fewbit.recipe import Recipe, Rule
from fewbit.train.layers import trained_layers

from .samples import ESTIMATORS, fit, net, pictures

X, _ = pictures(32, seed=9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("recipe", ["W8A8", "W4A4", "W2A4", "W3A16", "W4A16-g4-asym", "W8A8-dynamic"])
def test_training_learns_and_the_user_s_model_is_left_alone(recipe: str, estimator: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    prepared = fewbit.prepare_qat(model, recipe, [X], estimator=estimator)
    assert prepared.training
    losses = fit(prepared, steps=20, rate=0.1)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_starts_from_post_training_quantization(estimator: str) -> None:
    model = net()
    prepared = fewbit.prepare_qat(model, "W4A4", [X], estimator=estimator).eval()
    quantized = fewbit.quantize(model, "W4A4", [X], bias_correction=False)
    with torch.no_grad():
        # A moving-average range becomes a range again, and may move by a rounding.
        assert F.mse_loss(prepared(X), quantized(X)) <= 1e-3 * quantized(X).square().mean()
    if estimator.startswith("lsq"):
        with torch.no_grad():
            assert torch.equal(prepared(X), quantized(X))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_data_ranges_start_from_the_first_batch(estimator: str) -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", estimator=estimator)
    with pytest.raises(FewbitError, match="input of conv has no range yet"):
        prepared.eval()(X)
    losses = fit(prepared.train(), steps=12, rate=0.1)
    assert losses[-1] < losses[0]
    assert fewbit.convert(prepared)(X).isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_checkpointing_changes_nothing(estimator: str) -> None:
    plain = fewbit.prepare_qat(net(), "W4A4", [X], estimator=estimator)
    repeated = copy.deepcopy(plain)
    repeated.checkpointed = True
    assert fit(plain) == fit(repeated)
    states = zip(plain.state_dict().values(), repeated.state_dict().values())
    assert all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize("estimator", ["lsq", "ste"])
def test_a_compiled_model_trains_alike_in_one_graph(estimator: str) -> None:
    plain = fewbit.prepare_qat(net(), "W4A4", [X], estimator=estimator)
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert fit(plain, 3) == pytest.approx(fit(other, 3, run=compiled), rel=1e-5)
    assert len(quantized_layers(fewbit.convert(compiled))) == 3


def test_autocast_trains_and_evaluates() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    optimizer = torch.optim.AdamW(prepared.parameters(), 1e-2)
    losses = []
    for seed in range(12):
        x, y = pictures(16, seed)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(prepared(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert trained_layers(prepared)["conv"].weight.dtype == torch.float32


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("data", [None, [X]])
def test_a_killed_run_goes_on_from_its_state_dict(estimator: str, data: list[torch.Tensor] | None) -> None:
    def fresh() -> nn.Module:
        return fewbit.prepare_qat(net(), "W4A4", data, estimator=estimator, freeze_ranges_after=4, freeze_norms_after=3)

    whole = fresh()
    wanted = fit(whole, 6)
    killed = fresh()
    fit(killed, 2)
    file = io.BytesIO()
    torch.save(killed.state_dict(), file)
    file.seek(0)
    resumed = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert fit(resumed, 4, first=2) == wanted[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_a_mixed_recipe_trains_each_layer_at_its_own_width() -> None:
    rules = (Rule("@first", scheme="W8A8"), Rule("@last", skip=True))
    prepared = fewbit.prepare_qat(net(), Recipe("W2A4", rules=rules), [X])
    layers = trained_layers(prepared)
    assert {name: str(layer.weight_quantizer.spec) for name, layer in layers.items()} == {
        "conv": "int8/channel/sym",
        "hidden": "int2/channel/sym",
    }
    assert isinstance(prepared.head, nn.Linear)
    known = info(fewbit.convert(prepared))
    assert known is not None
    assert known.skipped == {"head": "skipped by rule '@last'"}
    assert known.algorithm == "qat-lsq"
    assert known.folded == [("conv", "norm")]


def test_ternary_weights_train() -> None:
    recipe = Recipe("W2A16", weights="ternary/channel/sym")
    prepared = fewbit.prepare_qat(net(), recipe)
    losses = fit(prepared, 20, rate=0.1)
    assert sum(losses[-4:]) < sum(losses[:4])
    codes = fewbit.convert(prepared).hidden.weight_qtensor()
    assert set(codes.spec.format.decode(codes.codes).unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("scheme", ["W2A8", "W2A8-dynamic"])
@pytest.mark.parametrize("estimator", ["lsq", "lsq_plus", "pact", "ste"])
def test_ternary_weights_train_under_integer_activations(scheme: str, estimator: str) -> None:
    prepared = fewbit.prepare_qat(net(), Recipe(scheme, weights="ternary/channel/sym"), [X], estimator=estimator)
    losses = fit(prepared, 20, rate=0.1)
    assert sum(losses[-4:]) < sum(losses[:4])
    converted = fewbit.convert(prepared)
    codes = converted.hidden.weight_qtensor()
    assert str(codes.spec) == "int2/channel/sym/narrow"
    assert codes.codes.unique().tolist() == [-1, 0, 1]
    with torch.no_grad():
        assert torch.equal(prepared.eval()(X), converted(X))


def test_the_momentum_of_ranges_is_the_callers() -> None:
    def after_a_step(momentum: float | None) -> float:
        prepared = fewbit.prepare_qat(net(), "W4A4", [X], estimator="ste", range_momentum=momentum)
        prepared(8 * X)
        return float(prepared.conv.input_quantizer.range.bounds()[1])

    start, end = after_a_step(None), float((8 * X).max())
    assert after_a_step(0.0) == pytest.approx(end)
    assert start < after_a_step(0.5) < end


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan"), "0.9"])
def test_a_momentum_without_sense_is_refused(momentum: object) -> None:
    with pytest.raises(FewbitError, match="range_momentum is a number of at least 0 and below 1"):
        fewbit.prepare_qat(net(), "W4A4", [X], estimator="ste", range_momentum=momentum)  # type: ignore[arg-type]
    with pytest.raises(FewbitError, match="range_momentum is for static activations trained by `ste`; here lsq"):
        fewbit.prepare_qat(net(), "W4A4", [X], range_momentum=0.9)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    fewbit.prepare_qat(net(), "W4A4", [X, X], progress=lambda *step: told.append(step))
    assert ("calibrate", 2, 2) in told
    assert told[-1] == ("prepare", 3, 3)


def test_mistakes_are_told() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    with pytest.raises(FewbitError, match="prepared for training already"):
        fewbit.prepare_qat(prepared, "W4A4", [X])
    with pytest.raises(FewbitError, match="no estimator is called 'lsk'; there are lsq, lsq_plus, pact, ste"):
        fewbit.prepare_qat(net(), "W4A4", [X], estimator="lsk")
    with pytest.raises(FewbitError, match="takes an nn"):
        fewbit.prepare_qat("model", "W4A4")  # type: ignore[arg-type]
    with pytest.raises(FewbitError, match="quantized already"):
        fewbit.prepare_qat(fewbit.quantize(net(), "W8A16"), "W4A4")
    with pytest.raises(FewbitError, match="binary have no integer product"):
        fewbit.prepare_qat(net(), Recipe("W2A8", weights="binary/channel/sym"), [X])


@pytest.mark.parametrize("recipe", [None, 5])
def test_what_is_no_recipe_is_refused(recipe: object) -> None:
    with pytest.raises(FewbitError, match="a recipe is a scheme's name"):
        fewbit.prepare_qat(net(), recipe)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(FewbitError, match="the model is compiled; prepare the model"):
        fewbit.prepare_qat(torch.compile(net()), "W8A16")


def test_a_model_in_training_is_not_quantized() -> None:
    prepared = fewbit.prepare_qat(net(), "W4A4", [X])
    for recipe in ("W8A16", "W8A8"):
        with pytest.raises(FewbitError, match="in training for its quantized form; convert it"):
            fewbit.quantize(prepared, recipe, [X])


@pytest.mark.parametrize("recipe", ["W2A16", "W4A16", "W8A16"])
def test_a_norm_that_starts_at_zero_learns(recipe: str) -> None:
    """As the last norm of a residual block does."""
    model = net()
    torch.nn.init.zeros_(model.norm.weight)
    torch.nn.init.ones_(model.norm.bias)
    prepared = fewbit.prepare_qat(model, recipe, [X])
    fit(prepared, 20)
    fit(model.train(), 20)
    moved, wanted = prepared.conv.folded_norm.norm.weight, model.norm.weight
    assert bool((moved != 0).all())
    assert moved.norm() > 0.3 * wanted.norm()


def test_a_state_of_another_recipe_is_refused() -> None:
    state = fewbit.prepare_qat(net(), "W8A8", [X]).state_dict()
    other = fewbit.prepare_qat(net(), "W2A2", [X])
    with pytest.raises(FewbitError, match=r"is prepared for int2.*, the state was trained for int8"):
        other.load_state_dict(state)
