"""Adapters: only they train, they start from the base, and merging computes what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import info
from fewbit.nn.layers import AdaptedLinear, QuantLinear
from fewbit.train import add_lora

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tanh(X @ torch.randn(16, 8, generator=torch.Generator().manual_seed(1)))


def base(recipe: str = "W4A16-g8") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    return fewbit.quantize(model, recipe, [X] if "A8" in recipe else None)


def train(model: nn.Module, steps: int = 60) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("recipe", ["W4A16-g8", "W4A16-g8-asym", "W2A16-g8", "W8A8", "W4A8-dynamic"])
@pytest.mark.parametrize("inside", [True, False])
def test_training_starts_from_the_base_and_learns(recipe: str, inside: bool) -> None:
    quantized = base(recipe)
    model = add_lora(quantized, rank=4, inside=inside)
    tie = 0.0 if "A16" in recipe else 2e-2  # a code of the second layer may round the other way
    assert torch.allclose(model(X), quantized(X), atol=1e-5 + tie)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == ["0.down", "0.up", "2.down", "2.up"]
    losses = train(model)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("recipe", ["W4A16-g8", "W4A16-g8-asym", "W8A8", "W4A8-dynamic"])
def test_inside_the_quantizer_the_merge_is_exact(recipe: str) -> None:
    quantized = base(recipe)
    model = add_lora(quantized, inside=True)
    train(model, 20)
    merged = fewbit.convert(model)
    assert all(isinstance(merged[i], QuantLinear) for i in (0, 2))
    with torch.no_grad():
        assert torch.equal(model.eval()(X), merged(X))
        assert torch.allclose(model.train()(X), merged(X), atol=1e-4 if "A16" in recipe else 2e-2)
    assert torch.equal(model.eval()(X), merged(X))
    assert torch.equal(merged[0].weight.packed.scale, quantized[0].weight.packed.scale)
    changed = merged[0].weight_qtensor().codes != quantized[0].weight_qtensor().codes
    assert changed.any()


def test_beside_the_base_what_has_no_codes_stays_in_float_and_is_told() -> None:
    model = add_lora(base(), inside=False, match="0")
    untouched = fewbit.convert(model)
    assert isinstance(untouched[0], QuantLinear)  # B is zero
    train(model, 20)
    kept = fewbit.convert(model)
    assert isinstance(kept[0], AdaptedLinear)
    assert any("beside the base stay in float" in note for note in info(kept).notes)
    with torch.no_grad():
        assert torch.equal(kept(X), model.eval()(X))


def test_beside_the_base_a_product_on_the_grid_is_merged() -> None:
    model = add_lora(base("W8A16"), rank=1, alpha=1.0, inside=False, match="0")
    layer = model[0]
    scale = layer.base.weight_qtensor().scale
    with torch.no_grad():  # whole steps, away from the ends
        layer.base.weight.packed.codes.clamp_(max=100)
        layer.down.fill_(1.0)
        layer.up.copy_(scale[:, None])
        wanted = model.eval()(X)
        merged = fewbit.convert(model)
        assert isinstance(merged[0], QuantLinear)
        assert torch.allclose(merged(X), wanted, atol=1e-4)


def test_state_dicts_hold_the_adapters_and_mistakes_are_told() -> None:
    model = add_lora(base(), rank=2)
    train(model, 5)
    other = add_lora(base(), rank=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))
    with pytest.raises(FewbitError, match="no quantized linear layer matches"):
        add_lora(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(FewbitError, match="rank of at least 1"):
        add_lora(base(), rank=0)


def test_adapters_on_adapters_and_settings_without_sense_are_refused() -> None:
    model = base()
    with pytest.raises(FewbitError, match="has adapters already"):
        add_lora(add_lora(model))
    for rank in (0, 1.5, "4", True):
        with pytest.raises(FewbitError, match="a rank of at least 1"):
            add_lora(model, rank=rank)
    with pytest.raises(FewbitError, match="alpha is a finite number"):
        add_lora(model, alpha=float("nan"))


@pytest.mark.parametrize("recipe", ["W4A16-g32", "W8A8-dynamic"])
def test_adapters_beside_the_base_are_saved_with_it(recipe: str, tmp_path: Path) -> None:
    adapted = add_lora(base(recipe), rank=3, alpha=6.0, inside=False)
    train(adapted, 20)
    kept = fewbit.convert(adapted)
    loaded = fewbit.load(fewbit.save(kept, tmp_path / "model"))
    assert isinstance(loaded[0], AdaptedLinear)
    with torch.no_grad():
        assert torch.equal(loaded(X), adapted.eval()(X))
        assert not torch.equal(loaded(X), base(recipe)(X))
    with pytest.raises(FewbitError, match="has adapters already"):
        add_lora(loaded)


def test_what_is_in_training_is_not_saved(tmp_path: Path) -> None:
    adapted = add_lora(base(), inside=False)
    for model in (adapted, fewbit.prepare_qat(nn.Sequential(nn.Linear(4, 4)), "W4A16")):
        with pytest.raises(FewbitError, match="0 is in training: convert the model first"):
            fewbit.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
