"""Windows run in parallel, one thread each, and come back in order."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn.layers import QuantLinear
from fewbit.nn.weight import PackedWeight, QuantizedWeight
from fewbit.pipeline import quantize_tensor
from fewbit.sequential.forward import Seen, computing, forward_type, narrow, over_windows, stand_ins


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_windows_come_in_order_without_gradients(threads: int) -> None:
    before = torch.get_num_threads()

    def run(window: int) -> tuple[int, int, bool]:
        time.sleep(0.002 * (window % 3))
        return window * 2, torch.get_num_threads(), torch.is_grad_enabled()

    found = list(over_windows(range(9), run, "float32", threads))
    assert found == [(window, (window * 2, 1, False)) for window in range(9)]
    assert torch.get_num_threads() == before


def test_few_windows_are_under_way_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def run(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    list(over_windows(range(12), run, "float32", 3))
    assert most <= 3


def test_an_error_is_passed_on() -> None:
    def run(window: int) -> None:
        raise FewbitError(f"window {window}")

    with pytest.raises(FewbitError, match="window 0"):
        list(over_windows(range(4), run, "float32", 2))


def test_each_thread_sees_its_own() -> None:
    seen = Seen()

    def run(window: int) -> list[tuple[str, int]]:
        for _ in range(3):
            seen.calls.append(("layer", window))
            time.sleep(0.001)
        return seen.take()

    assert all(calls == [("layer", window)] * 3 for window, calls in over_windows(range(8), run, "float32", 4))


def test_types_of_passes() -> None:
    assert forward_type("float32") == "float32"
    assert forward_type(None) in ("float32", "bfloat16")
    with pytest.raises(FewbitError, match="float32 or bfloat16"):
        forward_type("int8")
    x, layer = torch.randn(2, 8), nn.Linear(8, 8)
    for compute, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ((_, output),) = over_windows([0], lambda _: layer(x), compute)
        assert output.dtype == dtype


@pytest.mark.parametrize(("compute", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_stand_ins_compute_the_same(compute: str, bound: float) -> None:
    weight = quantize_tensor(torch.randn(6, 16), "int4/g16/sym")
    layer = QuantLinear(QuantizedWeight(PackedWeight(PackedMatrix.pack(weight))), torch.randn(6))
    model = nn.ModuleDict({"block": nn.ModuleDict({"layer": layer})})
    made = stand_ins(model, compute, "block")
    x = torch.randn(3, 16)
    ((_, output),) = over_windows([0], lambda _: made["block.layer"](x), compute)
    assert float((output - layer(x)).norm() / layer(x).norm()) < bound


def test_layers_hold_narrow_weights_for_a_while() -> None:
    layer, norm = nn.Linear(4, 3), nn.LayerNorm(4)
    tied = nn.Linear(4, 3)
    tied.weight = layer.weight
    weight, x = layer.weight, torch.randn(2, 4)
    with computing("bfloat16"):
        wanted = layer(x)
        with narrow([layer, norm], "bfloat16"):
            assert layer.weight.dtype == torch.bfloat16
            assert tied.weight is weight
            assert norm.weight.dtype == torch.float32
            assert torch.equal(layer(x), wanted)
    assert layer.weight is weight
    with pytest.raises(KeyError), narrow([layer], "bfloat16"):
        raise KeyError
    assert layer.weight is weight
    with narrow([layer], "float32"):
        assert layer.weight is weight
