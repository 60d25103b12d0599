"""What is left of outputs and layers, and the sentence about it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewbit.errors import FewbitWarning
from fewbit.evaluate import verdict
from fewbit.evaluate.verdict import Kept, first_lost, kept, thinned, unexplained, warning


def noisy(x: Tensor, db: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    return x + noise * (x.square().sum() / noise.square().sum()).sqrt() * 10 ** (-db / 20)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(4))


def test_the_sqnr_of_an_output(x: Tensor) -> None:
    for db in (-2.0, 2.0, 5.0, 30.0):
        found = kept({"y": x}, {"y": noisy(x, db)})["y"]
        assert found.sqnr == pytest.approx(db, abs=1e-3)
        assert found.enough == (db > 3)


def test_an_output_that_no_longer_changes_is_told_whatever_its_constant_part(x: Tensor) -> None:
    constant = (x + 100).mean(0, keepdim=True).expand_as(x)
    found = kept({"y": x + 100}, {"y": constant + 0.1})["y"]
    assert found.sqnr > 35
    assert found.varying is not None
    assert found.varying == pytest.approx(0, abs=0.01)
    assert not found.enough
    assert "in what changes from sample to sample" in str(found)


def test_a_constant_shift_takes_nothing_of_what_changes(x: Tensor) -> None:
    found = kept({"y": 0.01 * x + 10}, {"y": 0.01 * noisy(x, 20.0) + 10.1})["y"]
    assert found.varying == pytest.approx(20, abs=0.5)
    assert found.enough


@pytest.mark.parametrize("samples", [torch.ones(4, 7), torch.arange(7.0).expand(4, 7), torch.arange(1.0, 8)])
def test_equal_samples_and_single_ones_do_not_vary(samples: Tensor) -> None:
    assert kept({"y": samples}, {"y": samples * 1.01})["y"].varying is None


def test_nan_is_told_and_masks_do_not_count(x: Tensor) -> None:
    masked = x.masked_fill(x > 1, -math.inf)
    good = kept({"y": masked}, {"y": masked})["y"]
    assert good.sqnr == math.inf
    assert good.enough
    assert str(kept({"y": x}, {"y": x * math.nan})["y"]) == "is not finite"
    assert not kept({"y": x}, {"y": x * math.inf})["y"].enough


def test_what_the_float_model_does_not_repeat_is_not_told() -> None:
    poor = {"a": Kept(1.0), "b": Kept(2.0)}
    assert warning(poor, lambda: {"a": Kept(3.0), "b": Kept(40.0, 5.0)}, lambda: pytest.fail("no blame")) is None
    told = warning(poor, lambda: {"a": Kept(3.0), "b": Kept(40.0, 30.0)}, lambda: None)
    assert told is not None
    assert "output 'b' of" in told


@pytest.mark.parametrize("mask", [-1e9, 1e9, torch.finfo(torch.float32).min])
def test_finite_masks_do_not_hide_what_is_lost(x: Tensor, mask: float) -> None:
    hidden = x > 0.3
    masked = x.masked_fill(hidden, mask)
    for db in (-2.0, 20.0):
        found = kept({"y": masked}, {"y": noisy(x, db).masked_fill(hidden, mask)})["y"]
        assert found.sqnr == pytest.approx(db, abs=1.5)
        assert found.enough == (db > 3)
    assert kept({"y": masked}, {"y": masked})["y"].enough
    assert not kept({"y": masked}, {"y": (0 * x).masked_fill(hidden, mask)})["y"].enough
    moved = kept({"y": masked}, {"y": noisy(x, 20).masked_fill(hidden, mask / 2)})["y"]
    assert moved.sqnr == pytest.approx(6, abs=0.1)  # a mask that did not stay is an error


def test_outputs_that_cannot_be_compared_are_left_out(x: Tensor) -> None:
    assert kept({"a": x, "b": x, "c": x[:0], "d": x * 0}, {"b": x[1:], "c": x[:0], "d": x}) == {}


def test_channels_count_alike_and_factors_do_not(x: Tensor) -> None:
    width = torch.tensor([1e6, 1.0, 1.0, 1.0]).unsqueeze(1)
    rows = x.reshape(4, 60) * width
    assert unexplained(rows, rows * torch.tensor([2.0, 3.0, 0.1, 1.0]).unsqueeze(1) + 5) == pytest.approx(0, abs=1e-6)
    lost = rows * (width > 1)
    assert unexplained(rows, lost) == pytest.approx(0.75)
    assert unexplained(torch.ones(3, 5), torch.rand(3, 5)) is None
    assert unexplained(rows, rows * math.nan) == 1


def test_the_first_layer_that_is_lost(x: Tensor) -> None:
    pairs = {"a": (x, x), "b": (x, noisy(x, 20)), "c": (x, noisy(x, -10)), "d": (x, x * 0)}
    assert first_lost(pairs) == "c"
    assert first_lost({"a": (x, x), "odd": (x, x[1:])}) is None


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 4, 4), 1), ((2, 3, 5), -1), ((5,), 0), ((5000, 70), 0), ((), -1)])
def test_thinning_keeps_channels_apart(shape: tuple[int, ...], axis: int) -> None:
    values = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    rows = thinned(values, axis)
    channels = shape[axis] if shape else 1
    assert rows.shape[0] == (channels if channels <= 1024 else math.ceil(channels / math.ceil(channels / 1024)))
    assert rows.shape[1] <= 4096
    assert rows[0].tolist() == (values.movedim(axis, 0)[0] if shape else values).reshape(-1).tolist()[: rows.shape[1]]


def test_the_sentence() -> None:
    good, poor, bad = Kept(20, 10), Kept(2.0), Kept(-0.01)
    assert warning({"a": good}, lambda: pytest.fail("not again"), lambda: pytest.fail("nothing to blame")) is None
    told = warning({"a": good, "b": poor, "c": bad}, dict, lambda: "layer features.3")
    assert told is not None
    assert "output 'c' (and 1 more) of the quantized model is at an SQNR of 0.0 dB" in told
    assert "the output of layer features.3" in told
    assert "that layer" in told
    for remedy in ("more bits", "skips", "calibrator", "equalize", "prepared as the model expects"):
        assert remedy in told
    nobody = warning({"b": poor, "n": Kept(math.nan)}, dict, lambda: None)
    assert nobody is not None
    assert "output 'n' (and 1 more) of the quantized model is not finite" in nobody
    assert "skips layers" in nobody


def test_a_warning_of_our_own_kind() -> None:
    with pytest.warns(FewbitWarning, match="of no use"):
        verdict.warn("of no use")
