"""The pool of threads: the same bits however many there are, callers at once, children of a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from native_cases import histogram, matrix, minmax, packed_bytes, quantized, scales, searched, unpacked, zero_points
from torch import Tensor

from fewbit import _native as native
from fewbit.kernels import dispatch, threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before, torch_before = native.threads(), torch.get_num_threads()
    yield
    torch.set_num_threads(torch_before)
    native.set_threads(before)
    threads._told = None


def everything(rows: int, cols: int) -> list[Tensor]:
    """One result of every pass."""
    x, s, z = matrix(rows, cols, wild=True), scales(rows), zero_points(rows, -128, 127)
    codes, dynamic, scale = quantized(x, s, z, -128, 127, torch.int8), torch.empty(rows, cols).char(), torch.empty(rows)
    native.quantize_rows_dynamic(x, 127, dynamic, scale)
    values = torch.empty(rows, cols)
    native.dequantize_rows(codes, s, z, values)
    clips = searched(matrix(rows, cols), torch.linspace(1, 0.3, 5), False, 0, 15)
    halves = minmax(x.to(torch.bfloat16))
    counts = [histogram(x, 1 / s, 64), unpacked(packed_bytes(3, rows * cols), 3, True, rows * cols)]
    return [minmax(x), halves, codes, dynamic, scale, values, *clips, *counts]


# On both sides of the sizes at which a pass is cut (csrc/passes.cpp), by rows and within a row.
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 5), (2000, 70), (1, 300_001), (3, 65_537), (2, 65_536), (70_000, 1), (5, 0), (0, 5)]
)
def test_the_bits_do_not_depend_on_the_threads(rows: int, cols: int) -> None:
    native.set_threads(1)
    wanted = everything(rows, cols)
    for count in (2, 3, 8):
        native.set_threads(count)
        for got, alone in zip(everything(rows, cols), wanted, strict=True):
            assert torch.equal(got.view(torch.uint8), alone.view(torch.uint8))


def test_the_kernels_follow_torch() -> None:
    for count in (3, 1, 2):
        torch.set_num_threads(count)
        dispatch.minmax_rows(torch.ones(2, 2))
        assert native.threads() == count


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (5, 5), (100_000, 256)])
def test_a_number_of_threads_is_at_least_1_and_at_most_256(asked: int, given: int) -> None:
    native.set_threads(asked)
    assert native.threads() == given


def test_many_callers_at_once() -> None:
    native.set_threads(4)
    x = matrix(3000, 64)
    wanted = torch.stack([x.amin(1), x.amax(1)], 1)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(50) if not torch.equal(minmax(x), wanted))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


# NumPy, as torch's own OpenMP hangs in the child of a fork.
FORK = """
import os, sys, numpy
from fewbit import _native as native
native.set_threads(3)
x = numpy.arange(600_000, dtype=numpy.float32).reshape(3000, 200)
def right():
    out = numpy.empty((3000, 2), numpy.float32)
    native.minmax_rows(x, out)
    return bool((out == x[:, [0, -1]]).all())
assert right()
child = os.fork()
if child == 0:
    os._exit(0 if right() and right() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not right())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_a_fork_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


TEAM = """
import os, sys, torch, fewbit
from torch import nn
torch.set_num_threads(2)
layer = fewbit.quantize(nn.Sequential(nn.Linear(256, 512)).eval(), "W4A8-dynamic-g128", calibrator="minmax")
x = torch.randn(40, 256)
before = layer(x)
from fewbit import _native as native
from fewbit.kernels import threads
native.set_team(0)
assert torch.equal(layer(x), before)
native.set_team(threads._team())
assert torch.equal(layer(x), before)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(layer(x), before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_products_of_several_rows_are_the_same_on_torch_s_threads_and_in_a_child_of_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", TEAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_s_threads_are_found() -> None:
    if "OpenMP" in torch.__config__.parallel_info() and sys.platform == "linux":
        assert threads._team() != 0
