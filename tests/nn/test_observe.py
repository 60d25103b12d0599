"""What the observer tells is exactly what meets the weight: computed again from it, the layer's output comes out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.nn.observe import observed
from nn.samples import HalvedLinear, SameConv2d, ScaledEmbedding

CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def computed(call: Call, module: nn.Module) -> Tensor:
    """The product of a told input and the weight matrix, without bias."""
    matrix = kinds.weight_matrix(module)
    if call.kind == "embedding":
        return F.embedding(call.x, matrix)
    if call.kind == "linear":
        return F.linear(call.x, matrix)
    g = call.geometry
    assert g is not None
    x = F.pad(call.x, [side for pair in reversed(g.padding) for side in pair])
    kernel = matrix.reshape(matrix.shape[0], -1, *g.kernel)
    return CONVS[len(g.kernel)](x, kernel, None, g.stride, 0, g.dilation, g.groups)


IMAGE = (2, 4, 9, 8)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "conv 1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False), (2, 4, 9)),
    "conv 2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False), IMAGE),
    "same, even kernel": (lambda: nn.Conv2d(4, 6, 4, padding="same", bias=False), IMAGE),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect", bias=False), IMAGE),
    "circular, same": (lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular", bias=False), IMAGE),
    "replicate, stride": (lambda: nn.Conv2d(4, 6, 3, 2, 2, padding_mode="replicate", bias=False), IMAGE),
    "conv 3d": (lambda: nn.Conv3d(4, 6, 2, 1, 1, 1, 2, bias=False), (1, 4, 3, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, bias=False), IMAGE),
    "transposed, dilation": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, dilation=2, bias=False), IMAGE),
    "transposed, cropped": (lambda: nn.ConvTranspose2d(4, 6, 3, 1, 4, bias=False), IMAGE),
    "own forward, stride": (lambda: SameConv2d(4, 6, 3, 2, bias=False), IMAGE),
    "own forward, groups": (lambda: SameConv2d(4, 4, 5, 1, dilation=2, groups=4, bias=False), IMAGE),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_told_input_gives_the_layer_s_output(name: str) -> None:
    factory, shape = LAYERS[name]
    module, x, calls = factory(), torch.randn(shape), []
    with observed(module, [""], lambda _, call: calls.append(call)):
        result = module(x)
    (call,) = calls
    assert torch.allclose(computed(call, module), result, atol=1e-5)


@torch.no_grad()
def test_the_input_of_hugging_face_s_conv1d() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    module, x, calls = pytorch_utils.Conv1D(5, 3), torch.randn(2, 4, 3), []
    with observed(module, [""], lambda _, call: calls.append(call)):
        result = module(x)
    assert torch.allclose(computed(calls[0], module), result, atol=1e-5)


@torch.no_grad()
def test_an_own_forward_is_seen_at_the_product_not_at_the_door() -> None:
    module, x = HalvedLinear(5, 3), torch.randn(2, 5)
    calls: list[Call] = []
    with observed(module, [""], lambda _, call: calls.append(call)):
        wanted = module(x)
    assert torch.equal(calls[0].x, x * 0.5)
    assert torch.allclose(wanted, F.linear(x * 0.5, module.weight) + module.bias)


@torch.no_grad()
def test_embeddings_tell_their_indices() -> None:
    model = nn.ModuleList([nn.Embedding(5, 3), ScaledEmbedding(5, 3)])
    index, calls = torch.tensor([[1, 4]]), []
    with observed(model, ["0", "1"], lambda name, call: calls.append((name, call))):
        for layer in model:
            layer(index)
    assert [name for name, _ in calls] == ["0", "1"]
    assert all(call.kind == "embedding" and torch.equal(call.x, index) for _, call in calls)


def test_an_input_given_by_name() -> None:
    model = nn.ModuleList([nn.Linear(5, 3), HalvedLinear(5, 3), nn.Conv2d(1, 1, 1)])
    calls: list[str] = []
    with observed(model, ["0", "1", "2"], lambda name, call: calls.append(name)):
        model[0](input=torch.ones(1, 5))
        model[1](input=torch.ones(1, 5))
        model[2](input=torch.ones(1, 1, 2, 2))
    assert calls == ["0", "1", "2"]


def test_every_use_is_told_and_only_of_the_named_layers() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared)
    calls: list[str] = []
    with observed(model, ["0"], lambda name, call: calls.append(name)):
        model(torch.ones(1, 4))
        model(torch.ones(1, 4))
    assert calls == ["0"] * 4
    model(torch.ones(1, 4))
    assert len(calls) == 4


@torch.no_grad()
def test_outputs_are_the_same_while_observed() -> None:
    for name, (factory, shape) in LAYERS.items():
        module, x = factory(), torch.randn(shape)
        with observed(module, [""], lambda _, call: None):
            result = module(x)
        assert torch.equal(result, module(x)), name


def test_nothing_stays_behind() -> None:
    model = nn.Sequential(SameConv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1))
    before = dict(model.named_parameters())
    with observed(model, ["0", "1"], lambda _, call: None):
        model(torch.randn(IMAGE))
    assert list(model.state_dict()) == list(before)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert "weight" not in vars(model[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("culprit", ["model", "receiver"])
def test_nothing_stays_behind_when_something_raises(culprit: str) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("model")

    def receive(name: str, call: Call) -> None:
        if culprit == "receiver":
            raise RuntimeError("receiver")

    model = nn.Sequential(SameConv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1), Failing())
    weights = [model[0].weight, model[1].weight]
    with pytest.raises(RuntimeError, match=culprit), observed(model, ["0", "1"], receive):
        model(torch.randn(IMAGE))
    assert model[0]._parameters["weight"] is weights[0]
    assert model[1]._parameters["weight"] is weights[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model[:2](torch.randn(IMAGE))


def test_a_name_that_is_not_there_leaves_nothing_behind() -> None:
    model = nn.Sequential(SameConv2d(4, 4, 3))
    with pytest.raises(AttributeError), observed(model, ["0", "7"], lambda _, call: None):
        pass
    assert isinstance(model[0]._parameters["weight"], nn.Parameter)


def test_a_forward_that_looks_at_its_weight_finds_it() -> None:
    class Looking(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            assert self.weight.shape == (4, 4, 3, 3)
            pad = self.weight.shape[-1] // 2
            return F.conv2d(input.to(self.weight.dtype), self.weight, self.bias, padding=pad)

    calls: list[Call] = []
    module = Looking(4, 4, 3)
    with observed(module, [""], lambda _, call: calls.append(call)):
        module(torch.randn(IMAGE).double())
    assert calls[0].geometry is not None
    assert calls[0].geometry.padding == ((1, 1), (1, 1))
