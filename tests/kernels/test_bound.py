"""The short way of a layer gives the long way's bits, and is left as soon as anything is not as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.kernels import dispatch
from fewbit.kernels.bound import BoundLinear
from fewbit.nn import QuantizedWeight

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="needs the compiled kernels")
SCHEMES = ["W4A16-g32", "W8A16", "W4A8-dynamic-g32", "W8A8-dynamic", "W3A8-dynamic-g32", "W2A16-g64"]
INPUTS, OUTPUTS = 64, 24


def layer(scheme: str, bias: bool = True) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).eval()
    return fewbit.quantize(model, scheme, calibrator="minmax")[0]  # type: ignore[index]


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(1))


def long_way(module: Any, x: Tensor) -> Tensor:
    fresh = copy.deepcopy(module)
    assert fresh.weight.bound is None
    result: Tensor = fresh(x)
    return result


def takes_short_way(module: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, Tensor]:
    calls = []
    own = BoundLinear.__call__

    def counted(self: BoundLinear, x: Tensor) -> Tensor:
        calls.append(x)
        return own(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(BoundLinear, "__call__", counted)
        result: Tensor = module(x)
    return bool(calls), result


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_short_way_has_the_long_ways_bits(scheme: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(scheme, bias)
    module(rows(1))
    for shape in [(), (1,), (3,), (2, 5), (0,), (2, 1, 17)]:
        for dtype in (torch.float32, torch.bfloat16):
            x = rows(*shape).to(dtype)
            short, result = takes_short_way(module, x, monkeypatch)
            assert short
            assert result.dtype == dtype
            assert torch.equal(result, long_way(module, x))


def other_codes(weight: QuantizedWeight) -> Tensor:
    return weight.packed.codes.flip(0)


def change_codes(module: Any) -> None:
    module.weight.packed.codes.copy_(other_codes(module.weight))


def replace_codes(module: Any) -> None:
    module.weight.packed.codes = other_codes(module.weight)


def set_codes_data(module: Any) -> None:
    module.weight.packed.codes.set_(other_codes(module.weight))


def swap_codes_data(module: Any) -> None:
    module.weight.packed.codes.data = other_codes(module.weight)


def learn_bias(module: Any) -> None:
    bias = module.bias + 1
    del module.bias
    module.bias = nn.Parameter(bias)


def double_scale(module: Any) -> None:
    module.weight.packed.scale.mul_(2)


def replace_bias(module: Any) -> None:
    module.bias = module.bias + 1


def change_bias(module: Any) -> None:
    module.bias.add_(1)


def drop_bias(module: Any) -> None:
    module.bias = None


def load_state(module: Any) -> None:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["bias"] += 1
    state["weight.packed.codes"] = other_codes(module.weight)
    module.load_state_dict(state)


def drop_quantizer(module: Any) -> None:
    module.weight.input_quantizer = None


CHANGES = [
    change_codes, replace_codes, set_codes_data, swap_codes_data, double_scale, replace_bias, change_bias, learn_bias,
    drop_bias, load_state, drop_quantizer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scheme", ["W4A8-dynamic-g32", "W4A16-g32"])
@torch.no_grad()
def test_changes_of_the_layer_are_seen(scheme: str, change: Any) -> None:
    module, x = layer(scheme), rows(2)
    before = [module(x) for _ in range(2)][-1]
    change(module)
    after = module(x)
    assert torch.equal(after, long_way(module, x))
    assert torch.equal(module(x), after)
    if not (change is drop_quantizer and scheme == "W4A16-g32"):
        assert not torch.equal(after, before)


@pytest.mark.parametrize("scheme", ["W4A8-dynamic-g32", "W4A16-g32"])
def test_other_inputs_go_the_long_way(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = layer(scheme), rows(3)
    with torch.no_grad():
        wanted = [module(x) for _ in range(2)][-1]
        for other in (rows(6)[::2], x.to(torch.float16), x.to(torch.float64)):
            short, result = takes_short_way(module, other, monkeypatch)
            assert not short
            assert result.dtype == other.dtype
        assert torch.equal(module(x.t().contiguous().t()), wanted)
    short, result = takes_short_way(module, x.clone().requires_grad_(), monkeypatch)
    assert not short
    assert torch.allclose(result, wanted, atol=1e-5)


@torch.no_grad()
def test_copies_bind_their_own_tensors() -> None:
    module, x = layer("W4A8-dynamic-g32"), rows(2)
    wanted = [module(x) for _ in range(2)][-1]
    assert isinstance(module.weight.bound, BoundLinear)
    copied = copy.deepcopy(module)
    for other in (copied, copy.deepcopy(copied)):
        assert other.weight.bound is None
        assert torch.equal(other(x), wanted)
    change_codes(copied)
    assert torch.equal(module(x), wanted)
    assert not torch.equal(copied(x), wanted)


@torch.inference_mode()
def test_tensors_of_inference_mode_are_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = layer("W4A8-dynamic-g32"), rows(2)
    wanted = module(x)
    short, result = takes_short_way(module, x.clone(), monkeypatch)
    assert short
    assert torch.equal(result, wanted)


def test_a_pickle_of_it_is_none() -> None:
    module = layer("W4A16-g32")
    with torch.no_grad():
        module(rows(1))
    make, arguments = module.weight.bound.__reduce__()
    assert make(*arguments) is None


def test_an_address_that_no_float_has_is_refused() -> None:
    module, x = layer("W4A8-dynamic-g32"), rows(1)
    with torch.no_grad():
        module(x)
    matrix, out = module.weight.bound.layout, torch.empty(1, OUTPUTS)
    with pytest.raises(ValueError, match="multiple of its element size"):
        matrix.linear_at(x.data_ptr() + 1, 1, False, 127, False, 0, out.data_ptr())


@pytest.mark.parametrize("scheme", ["W4A8-dynamic-g32", "W4A16-g32"])
@torch.no_grad()
def test_a_bound_layer_compiles_and_exports(scheme: str) -> None:
    module, x = layer(scheme), rows(2)
    wanted = [module(x) for _ in range(2)][-1]
    assert module.weight.bound is not None
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    exported = torch.export.export(module, (x,)).module()
    for other in (compiled, exported):
        assert torch.equal(other(x), wanted)
    assert torch.equal(module(x), wanted)


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W8A8-dynamic"])
def test_tensors_whose_memory_does_not_hold_their_values(scheme: str) -> None:
    module, x = layer(scheme), rows(3)
    for _ in range(2):  # the long way, and the short one
        assert torch.equal(module(torch._neg_view(x)), module(-x))
        assert torch.equal(module(torch._efficientzerotensor(3, INPUTS)), module(torch.zeros(3, INPUTS)))
