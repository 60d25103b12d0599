"""Folding batch norm changes no output, whatever the model looks like; where it could, it is not done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import fold_batch_norm
from fewbit.nn.fold import FoldResult
from nn.samples import SameConv2d, difference

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def trained(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights that are far from those of a new one."""
    for module in model.modules():
        if isinstance(module, Norm):
            with torch.no_grad():
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(0, 2)
                    module.running_var.uniform_(0.1, 4)
                if module.affine:
                    module.weight.normal_()  # negative ones too
                    module.bias.normal_()
    return model.eval()


def first(output: Any) -> Tensor:
    result: Tensor = output if isinstance(output, Tensor) else output[0]
    return result


def folded(model: nn.Module, x: Tensor, run: bool) -> FoldResult:
    """Fold a copy, hold every output to the float ones, and give the result."""
    work = copy.deepcopy(model)
    result = fold_batch_norm(work, (lambda m: first(m(x))) if run else None)
    with torch.no_grad():
        before, after = model(x), result.model(x)
    pairs = [(before, after)] if isinstance(before, Tensor) else list(zip(before, after, strict=True))
    for old, new in pairs:
        assert difference(new, old) < 1e-5
    return result


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), (4, 6)),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)), (4, 6)),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), (2, 3, 7)),
    "conv 2d": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)), (2, 3, 6, 6)),
    "conv 2d without bias": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), (2, 3, 6, 6)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 6, 6)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 6, 6)),
    "conv 3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 3, 2), nn.BatchNorm2d(5)), (2, 3, 4, 4)),
    "transposed, grouped": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6)),
        (2, 4, 4, 4),
    ),
    "norm without weights": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)),
        (2, 3, 6, 6),
    ),
    "large eps": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=0.5)), (2, 3, 6, 6)),
    "own forward": (lambda: nn.Sequential(SameConv2d(3, 5, 3, 2), nn.BatchNorm2d(5)), (2, 3, 7, 7)),
    "deep": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
            nn.Sequential(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        ),
        (2, 3, 8, 8),
    ),
}


class Branching(nn.Module):
    """Cannot be traced symbolically: what runs depends on the values."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        if float(x.sum()) > 1e9:
            return x
        return self.inner(x)


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("way", ["traced", "traced and checked", "observed"])
def test_a_norm_that_alone_reads_a_layer_is_folded(name: str, way: str) -> None:
    factory, shape = FOLDED[name]
    model = trained(factory())
    norms = sum(isinstance(m, Norm) for m in model.modules())
    if way == "observed":
        model = Branching(model)
    # Without an example nobody knows which axis of a linear layer's output the norm takes for channels.
    run = way != "traced" or "linear" in name
    result = folded(model, torch.randn(shape), run=run)
    assert len(result.pairs) == norms
    assert not any(isinstance(m, Norm) for m in result.model.modules())
    assert not result.notes


def test_pairs_are_told_by_name() -> None:
    model = trained(nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), nn.ReLU()))
    assert folded(model, torch.randn(1, 3, 5, 5), run=False).pairs == [("0.0", "0.1")]


def test_a_model_without_norms_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    result = fold_batch_norm(model)
    assert result.model is model
    assert (result.pairs, result.notes) == ([], [])


def test_half_precision_keeps_its_dtype() -> None:
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))).to(torch.bfloat16)
    fold_batch_norm(model)
    linear = model[0]
    assert isinstance(linear, nn.Linear)
    assert linear.weight.dtype == torch.bfloat16
    assert linear.bias.dtype == torch.bfloat16


# --- what is not folded -------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution and its norm; subclasses use them in ways that forbid folding."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(3)


class SecondConsumer(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y) + y


class AlsoReturned(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y), y


class ReturnedFirst(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y, self.norm(y)


class LayerTwice(Block):
    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(self.conv(x)))


class NormTwice(Block):
    def forward(self, x: Tensor) -> Any:
        return self.norm(self.norm(self.conv(x)))


class Between(Block):
    """Something stands between them."""

    def forward(self, x: Tensor) -> Any:
        return self.norm(F.relu(self.conv(x)))


class Residual(Block):
    def forward(self, x: Tensor) -> Any:
        return self.norm(x) + self.conv(x)


class ByName(Block):
    """A second way to the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.conv

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)) + self.alias(x)


class SharedWeight(Block):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)) + self.other(x)


NOT_FOLDED = [
    SecondConsumer, AlsoReturned, ReturnedFirst, LayerTwice, NormTwice, Between, Residual, ByName, SharedWeight,
]  # fmt: skip


@pytest.mark.parametrize("kind", NOT_FOLDED)
@pytest.mark.parametrize("way", ["traced", "traced and checked", "observed"])
def test_what_folding_would_change_is_left_as_it_is(kind: type[Block], way: str) -> None:
    model = trained(kind())
    if way == "observed":
        model = Branching(model)
    result = folded(model, torch.randn(2, 3, 5, 5), run=way != "traced")
    assert result.pairs == []
    name = "inner.norm" if way == "observed" else "norm"
    assert len(result.notes) == 1
    assert result.notes[0].startswith("batch norm left in float")
    assert result.notes[0].endswith(name)


def test_a_norm_without_running_statistics_is_left_as_it_is() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)))
    result = folded(model, torch.randn(2, 3, 5, 5), run=True)
    assert result.pairs == []
    assert "1" in result.notes[0]


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("rows", [5, 6])
def test_a_norm_over_another_axis_than_the_layer_s_outputs_is_left_as_it_is(rows: int, run: bool) -> None:
    """BatchNorm1d takes axis 1 of ``[N, L, features]`` for channels; Linear's outputs are the last axis."""
    model = trained(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(rows)))
    assert folded(model, torch.randn(2, rows, 8), run=run).pairs == []


class Standardized(nn.Conv2d):
    """Scaling its weight changes nothing, so nothing can be folded into it."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias)


class ScaledBias(nn.Linear):
    """Its output is not linear in what stands in ``bias`` the way a fold takes it to be."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias * 0.5)


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("layer", ["standardized", "scaled bias"])
def test_a_layer_that_computes_something_of_its_own_keeps_its_norm(layer: str, run: bool) -> None:
    model: nn.Module
    if layer == "standardized":
        model, x = nn.Sequential(Standardized(3, 5, 3), nn.BatchNorm2d(5)), torch.randn(2, 3, 6, 6)
    else:
        model, x = nn.Sequential(ScaledBias(6, 5), nn.BatchNorm1d(5)), torch.randn(4, 6)
    assert folded(trained(model), x, run=run).pairs == []


def test_what_would_overflow_is_left_as_it_is() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    model[1].weight.data.fill_(torch.inf)
    result = fold_batch_norm(model)
    assert result.pairs == []
    assert result.notes


# --- notes and the check ------------------------------------------------------------------------


def test_a_model_that_cannot_be_traced_needs_data() -> None:
    model = trained(Branching(FOLDED["conv 2d"][0]()))
    result = folded(model, torch.randn(2, 3, 6, 6), run=False)
    assert result.notes == ["batch norm was not folded: the model cannot be traced symbolically and no data was given"]


def test_only_the_foldable_norms_of_a_model_are_folded() -> None:
    model = trained(
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5))
    )
    result = folded(model, torch.randn(2, 3, 6, 6), run=True)
    assert result.pairs == [("1", "2")]
    assert result.notes == ["batch norm left in float (not behind a layer that feeds it alone): 0, 4"]


def test_a_fold_that_changes_the_outputs_is_an_error() -> None:
    """Here another input each time stands for a fold that went wrong."""

    model = trained(FOLDED["conv 2d"][0]())
    with pytest.raises(FewbitError, match="folding batch norm changed the outputs by"):
        fold_batch_norm(model, lambda m: first(m(torch.randn(2, 3, 6, 6))))


def test_hooks_and_modes_are_gone_afterwards() -> None:
    model = trained(Branching(SecondConsumer()))
    folded(model, torch.randn(2, 3, 5, 5), run=True)
    x = torch.randn(2, 3, 5, 5)
    fold_batch_norm(model, lambda m: first(m(x)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def failing(_: nn.Module) -> Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fold_batch_norm(model, failing)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_quantize_folds_and_tells() -> None:
    model = trained(Branching(FOLDED["deep"][0]()))
    quantized = fewbit.quantize(model, "W8A16", [torch.randn(2, 3, 8, 8)])
    info = fewbit.nn.info(quantized)
    assert info is not None
    assert info.folded == [("inner.0.0", "inner.0.1"), ("inner.1.0", "inner.1.1")]
    assert any(isinstance(m, Norm) for m in model.modules()), "the user's model is not changed"
