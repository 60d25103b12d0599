"""What was prepared for a weight is used as long as the weight is the same, and not a moment longer."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from product_cases import activations, exact_weight, weight
from torch import Tensor

from fewbit.kernels import products
from fewbit.kernels.dispatch import native
from fewbit.kernels.prepared import prepared
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix


class Builder:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_it_is_built_once(build: Builder) -> None:
    codes, scale = torch.zeros(8, dtype=torch.uint8), torch.ones(2)
    for _ in range(3):
        assert prepared(codes, (scale, None), "form", build) == 1
    assert build.calls == 1


def test_each_key_has_its_own_form(build: Builder) -> None:
    codes = torch.zeros(8, dtype=torch.uint8)
    assert [prepared(codes, (), key, build) for key in ("a", "b", "a")] == [1, 2, 1]


CHANGES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "codes written": lambda codes, scale, zero: codes.fill_(3),
    "one code written": lambda codes, scale, zero: codes.__setitem__(2, 3),
    "codes loaded": lambda codes, scale, zero: codes.copy_(torch.ones(8)),
    "scale written": lambda codes, scale, zero: scale.mul_(2),
    "zero point written": lambda codes, scale, zero: zero.add_(1),
    "a view of the codes written": lambda codes, scale, zero: codes[2:].zero_(),
    "codes' data replaced": lambda codes, scale, zero: setattr(codes, "data", torch.ones(8, dtype=torch.uint8)),
    "scale's data replaced": lambda codes, scale, zero: setattr(scale, "data", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_built_again_after_a_change(build: Builder, change: Callable[[Tensor, Tensor, Tensor], object]) -> None:
    codes, scale, zero = torch.zeros(8, dtype=torch.uint8), torch.ones(2), torch.zeros(2, dtype=torch.uint8)
    assert prepared(codes, (scale, zero), "form", build) == 1
    change(codes, scale, zero)
    assert prepared(codes, (scale, zero), "form", build) == 2
    assert prepared(codes, (scale, zero), "form", build) == 2


def test_a_change_in_inference_mode_is_seen(build: Builder) -> None:
    codes = torch.zeros(8, dtype=torch.uint8)
    assert prepared(codes, (), "form", build) == 1
    with torch.inference_mode():
        codes.fill_(3)
        assert prepared(codes, (), "form", build) == 2


def test_tensors_made_in_inference_mode_are_served(build: Builder) -> None:
    with torch.inference_mode():
        codes, scale = torch.zeros(8, dtype=torch.uint8), torch.ones(2)
        assert [prepared(codes, (scale,), "form", build) for _ in range(2)] == [1, 1]
    assert prepared(codes, (scale,), "form", build) == 1


def test_another_scale_builds_again(build: Builder) -> None:
    codes = torch.zeros(8, dtype=torch.uint8)
    assert prepared(codes, (torch.ones(2),), "form", build) == 1
    assert prepared(codes, (torch.ones(2),), "form", build) == 2
    assert prepared(codes, (None,), "form", build) == 3


def test_views_at_other_offsets_are_other_weights(build: Builder) -> None:
    both = torch.zeros(16, dtype=torch.uint8)
    assert prepared(both[:8], (), "form", build) == 1
    assert prepared(both[8:], (), "form", build) == 2


def test_a_form_dies_with_its_tensor(build: Builder) -> None:
    class Form:
        pass

    forms: list[weakref.ref[Form]] = []

    def made() -> Form:
        form = Form()
        forms.append(weakref.ref(form))
        return form

    for _ in range(50):
        prepared(torch.zeros(8, dtype=torch.uint8), (torch.ones(2),), "form", made)
    gc.collect()
    assert len(forms) == 50
    assert sum(form() is not None for form in forms) <= 1  # the dead are forgotten when the next one comes


def test_memory_that_is_used_again_gives_no_stale_answer() -> None:
    """The allocator hands out the same addresses again and again; each weight must meet its own form."""
    x = activations("int8/token/sym", (2, 16))
    for seed in range(200):
        t = weight("int8/channel/sym", 3, 16, seed)
        result = products.linear(x.codes, x.scale, None, PackedMatrix.pack(t), None)
        wanted = x.exact() @ exact_weight(t).t()
        assert torch.allclose(result.double(), wanted, rtol=1e-5, atol=1e-5), seed


def test_a_deep_copy_is_independent() -> None:
    x = activations("int8/token/sym", (2, 16))
    first = PackedMatrix.pack(weight("int8/channel/sym", 3, 16))
    before = products.linear(x.codes, x.scale, None, first, None)
    second = copy.deepcopy(first)
    second.scale.mul_(2)
    assert torch.equal(products.linear(x.codes, x.scale, None, second, None), before * 2)
    assert torch.equal(products.linear(x.codes, x.scale, None, first, None), before)
    first.codes.zero_()
    assert not products.linear(x.codes, x.scale, None, first, None).any()
    assert torch.equal(products.linear(x.codes, x.scale, None, second, None), before * 2)


@pytest.mark.parametrize("spec", ["int8/channel/sym", "uint8/channel/asym", "int4/g32/sym", "int4/g32/asym"])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_follow_a_weight_that_changes(isa: str, spec: str, groups: int) -> None:
    """As load_state_dict changes it: in place."""
    walk = Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups)
    old, new = PackedMatrix.pack(weight(spec, 4, 36, 0)), PackedMatrix.pack(weight(spec, 4, 36, 1))
    x, image = activations("uint8/tensor/asym", (2, 36)), activations("uint8/tensor/asym", (2, 4 * groups, 5, 5))

    def run(matrix: PackedMatrix) -> tuple[Tensor, Tensor]:
        return (
            products.linear(x.codes, x.scale, x.zero_point, matrix, None),
            products.conv(image.codes, image.scale, image.zero_point, matrix, None, walk),
        )

    run(old)
    old.codes.copy_(new.codes)
    old.scale.copy_(new.scale)
    if old.zero_point is not None and new.zero_point is not None:
        old.zero_point.copy_(new.zero_point)
    assert all(torch.equal(a, b) for a, b in zip(run(old), run(new)))
    old.scale.mul_(0)
    assert not run(old)[0].any()
    assert not run(old)[1].any()


def test_nothing_is_told_at_the_interpreters_end() -> None:
    lines = (
        "import ctypes, torch, fewbit",
        "from fewbit.kernels import prepared",
        "made = fewbit.quantize(torch.nn.Linear(64, 64), 'W4A16-g32')",
        "made(torch.randn(1, 64))",
        "print(len(prepared._entries))",
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(prepared._entries))",  # never let go
    )
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= (native() is not None)
    assert "leaked" not in done.stderr


def test_threads_forget_dead_forms_side_by_side() -> None:
    threads, barrier, before = 4, Barrier(4, timeout=20), sys.getswitchinterval()

    def churn(seed: int) -> None:
        for step in range(20):
            many = [torch.full((4,), seed + n, dtype=torch.int32) for n in range(100)]
            assert [prepared(each, (), "form", lambda e=each: int(e[0])) for each in many] == [*range(seed, seed + 100)]
            barrier.wait()
            del many
            codes = torch.full((4,), step, dtype=torch.int32)
            barrier.wait()  # all find the same dead forms
            assert prepared(codes, (), "form", lambda e=codes: int(e[0])) == step

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(churn, range(0, 4000, 1000)))
    finally:
        sys.setswitchinterval(before)
