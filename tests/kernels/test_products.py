"""Every backend of the integer products against exact products in float64.

The bound is the one that products.py states, ``2^-22 · Σ |X_q W_q| s_x s_w``, with zero points counted into ``|X_q|``
and ``|W_q|``; where scales are 1 and nothing exceeds 2^24 there is no error at all.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product_cases import (
    ACTIVATIONS,
    WEIGHTS,
    Activations,
    activations,
    exact_conv,
    exact_weight,
    integers,
    pack,
    weight,
    weight_size,
)
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import onednn, products
from fewbit.kernels.products import Geometry
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

BOUND = 2.0**-22
# The fixture sets an environment variable once for all examples of a test, which is meant.
example_runs = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_within(result: Tensor, exact: Tensor, size: Tensor) -> None:
    assert result.dtype == torch.float32
    assert result.shape == exact.shape
    error = (result.double() - exact).abs()
    assert (error <= BOUND * size).all(), f"{float((error / size).max() / BOUND):.2f} times the bound"


def check_linear(x: Activations, t: QTensor, bias: Tensor | None = None) -> Tensor:
    result = products.linear(x.codes, x.scale, x.zero_point, pack(t), bias)
    exact, size = x.exact() @ exact_weight(t).t(), x.size() @ weight_size(t).t()
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    assert_within(result, exact, size)
    return result


# --- linear -------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 70), st.integers(1, 9))


@given(SHAPES, st.sampled_from(WEIGHTS), st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 10_000))
@example_runs
def test_linear_is_the_exact_product(
    isa: str, shape: tuple[int, int, int], w: str, a: str, biased: bool, seed: int
) -> None:
    m, k, n = shape
    bias = torch.linspace(-2, 3, n) if biased else None
    check_linear(activations(a, (m, k), seed), weight(w, n, k, seed), bias)


@pytest.mark.parametrize("w", WEIGHTS)
@pytest.mark.parametrize("a", ACTIVATIONS)
def test_linear_holds_integers_exactly(isa: str, w: str, a: str) -> None:
    k = 250 if "int16" not in a else 3  # nothing exceeds 2^24 on the way: 250 · 255 · 256 < 2^24
    x, t = activations(a, (3, k), 1, ones=True), weight(w, 5, k, 2, ones=True)
    result = products.linear(x.codes, x.scale, x.zero_point, pack(t), torch.arange(5.0))
    assert torch.equal(result.double(), x.centred() @ exact_weight(t).t() + torch.arange(5.0))


@pytest.mark.parametrize("w", ["int8/channel/sym", "int8/channel/asym", "int8/g32/sym", "uint8/tensor/asym"])
@pytest.mark.parametrize("a", ["uint8/tensor/asym", "int8/token/sym", "int8/token/asym"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_linear_takes_any_leading_dimensions(isa: str, w: str, a: str, shape: tuple[int, ...]) -> None:
    x, t = activations(a, (*shape, 40)), weight(w, 4, 40)
    result = products.linear(x.codes, x.scale, x.zero_point, pack(t), torch.ones(4))
    assert result.shape == (*shape, 4)
    if result.numel():
        x = Activations(
            x.codes.reshape(-1, 40),
            x.scale.reshape(-1) if x.scale.dim() else x.scale,
            x.zero_point if x.zero_point is None or not x.zero_point.dim() else x.zero_point.reshape(-1),
        )
        assert torch.equal(result.reshape(-1, 4), check_linear(x, t, torch.ones(4)))


@pytest.mark.parametrize("a", ["uint8/tensor/asym", "int8/tensor/sym", "int16/tensor/asym"])
@pytest.mark.parametrize("w", ["int8/channel/sym", "int4/g32/asym"])
def test_linear_takes_codes_in_any_memory_order(isa: str, w: str, a: str) -> None:
    x, t = activations(a, (6, 80)), pack(weight(w, 3, 40))
    for codes in (x.codes[:, ::2], x.codes[:, :6].t().repeat(1, 7)[:, :40], x.codes[:1, :40].expand(5, 40)):
        plain = products.linear(codes.contiguous(), x.scale, x.zero_point, t, None)
        assert torch.equal(products.linear(codes, x.scale, x.zero_point, t, None), plain)


@pytest.mark.parametrize(("codes", "zero"), [(255, 0), (0, 255), (255, 128)])
@pytest.mark.parametrize("w", [-128, 127])
@pytest.mark.parametrize("rows", [1, 5])
def test_extreme_codes_do_not_saturate(isa: str, codes: int, zero: int, w: int, rows: int) -> None:
    spec, k = QSpec.parse("int8/channel/sym"), 512
    t = QTensor(torch.full((3, k), w, dtype=torch.int8), torch.ones(3), None, spec, (3, k))
    x = torch.full((rows, k), codes, dtype=torch.uint8)
    result = products.linear(x, torch.ones(()), torch.tensor(zero, dtype=torch.int32), pack(t), None)
    assert torch.equal(result.double(), torch.full((rows, 3), float((codes - zero) * w * k), dtype=torch.float64))


@pytest.mark.parametrize("k", [onednn.MAX_DEPTH, onednn.MAX_DEPTH + 1, 140_000])
@pytest.mark.parametrize("zero", [None, 255])
def test_sums_that_would_overflow_int32_are_split(isa: str, k: int, zero: int | None) -> None:
    spec = QSpec.parse("int8/channel/sym")
    t = QTensor(torch.full((2, k), -128, dtype=torch.int8), torch.ones(2), None, spec, (2, k))
    codes = torch.full((2, k), 255 if zero is None else 0, dtype=torch.uint8)
    check_linear(Activations(codes, torch.ones(()), None if zero is None else torch.tensor(zero, dtype=torch.int32)), t)


def test_16_bit_activations_overflow_no_backend(isa: str) -> None:
    """Codes of 16 bits reach the end of int32 at K = 512."""
    k = 600
    spec = QSpec.parse("int8/channel/sym")
    t = QTensor(torch.full((2, k), -128, dtype=torch.int8), torch.ones(2), None, spec, (2, k))
    check_linear(Activations(torch.full((1, k), -32768, dtype=torch.int16), torch.ones(()), None), t)


@pytest.mark.parametrize("w", ["int8/g32/sym", "int4/g32/sym"])
def test_the_bound_holds_for_many_groups(isa: str, w: str) -> None:
    """Equal partial sums are rounded the same way each time they are added, so the errors do not cancel."""
    k, spec = 16384, QSpec.parse(w)
    t = QTensor(torch.full((1, k), 5, dtype=torch.int8), torch.full((1, k // 32), 0.1234567), None, spec, (1, k))
    check_linear(Activations(torch.full((1, k), 101, dtype=torch.int8), torch.tensor(0.0371), None), t)


@pytest.mark.parametrize("w", ["int4/channel/sym", "int8/channel/sym", "int4/g32/sym"])
@pytest.mark.parametrize("a", ["uint8/tensor/asym", "uint8/token/asym", "int8/token/asym"])
def test_an_input_of_real_zeros_gives_exactly_the_bias(isa: str, w: str, a: str) -> None:
    x = activations(a, (4, 50))
    assert x.zero_point is not None
    zero = x.zero_point if x.zero_point.dim() == 0 else x.zero_point[:, None]
    codes = zero.expand(4, 50).to(x.codes.dtype)
    bias = torch.randn(6)
    result = products.linear(codes, x.scale, x.zero_point, pack(weight(w, 6, 50)), bias)
    assert_within(
        result,
        bias.double().expand(4, 6),
        Activations(codes, x.scale, x.zero_point).size() @ (weight_size(weight(w, 6, 50)).t()),
    )
    if x.zero_point.dim() == 0:
        assert torch.equal(result, bias.expand(4, 6))


def test_formats_without_integers_are_refused(isa: str) -> None:
    t = weight("int4/channel/sym", 3, 8)
    nf4 = QTensor(t.codes.abs().to(torch.uint8), t.scale, None, QSpec.parse("nf4/channel/sym"), t.shape)
    with pytest.raises(FewbitError, match="integer weights, not nf4"):
        products.linear(torch.ones(1, 8, dtype=torch.int8), torch.ones(()), None, pack(nf4), None)


def test_a_bias_is_not_changed(isa: str) -> None:
    bias = torch.ones(3)
    t = pack(weight("int8/channel/asym", 3, 8))
    for a in ("int8/token/sym", "uint8/tensor/asym"):
        x = activations(a, (2, 8))
        products.linear(x.codes, x.scale, x.zero_point, t, bias)
    assert torch.equal(bias, torch.ones(3))


# --- convolutions -------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Geometry, tuple[int, ...], int]:
    """A geometry, the shape of its input and its output channels."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    symmetric = draw(st.booleans())
    before = each(0, 2)
    padding = tuple(zip(before, before if symmetric else each(0, 2)))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    spatial = [max(span - sum(pad), 1) + draw(st.integers(0, 4)) for span, pad in zip(spans, padding)]
    channels = groups * draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 2)), channels, *spatial)
    return Geometry(kernel, stride, padding, dilation, groups), shape, groups * draw(st.integers(1, 3))


def conv_case(
    case: tuple[Geometry, tuple[int, ...], int], w: str, a: str, seed: int, ones: bool = False
) -> tuple[Activations, QTensor]:
    geometry, shape, out = case
    columns = shape[1] // geometry.groups * torch.Size(geometry.kernel).numel()
    return activations(a, shape, seed, ones), weight(w, out, columns, seed, ones)


def check_conv(x: Activations, t: QTensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    result = products.conv(x.codes, x.scale, x.zero_point, pack(t), bias, geometry)
    exact = exact_conv(x.exact(), exact_weight(t), geometry)
    # A patch of the input by the whole weight bounds the border, where codes are the zero point, as well.
    size = exact_conv(torch.full_like(x.exact(), float(x.size().max()) * 2), weight_size(t), geometry)
    size = size.amax(dim=tuple(range(2, size.dim())), keepdim=True).expand(exact.shape)
    if bias is not None:
        channel = bias.double().reshape(-1, *[1] * len(geometry.kernel))
        exact, size = exact + channel, size + channel.abs()
    assert_within(result, exact, size)
    return result


@given(
    convolutions(),
    st.sampled_from(WEIGHTS),
    st.sampled_from([a for a in ACTIVATIONS if "token" not in a] + ["int8/channel/sym"]),
    st.booleans(),
    st.integers(0, 10_000),
)
@example_runs
def test_conv_is_the_exact_product(
    isa: str, case: tuple[Geometry, tuple[int, ...], int], w: str, a: str, biased: bool, seed: int
) -> None:
    x, t = conv_case(case, w, a, seed)
    check_conv(x, t, case[0], torch.linspace(-2, 3, case[2]) if biased else None)


@given(
    convolutions(),
    st.sampled_from([w for w in WEIGHTS if "g32" not in w]),
    st.sampled_from(["uint8/tensor/asym", "int8/tensor/sym", "int8/channel/sym"]),
    st.integers(0, 10_000),
)
@example_runs
def test_conv_holds_integers_exactly(
    isa: str, case: tuple[Geometry, tuple[int, ...], int], w: str, a: str, seed: int
) -> None:
    x, t = conv_case(case, w, a, seed, ones=True)
    result = products.conv(x.codes, x.scale, x.zero_point, pack(t), None, case[0])
    assert torch.equal(result.double(), exact_conv(x.centred(), exact_weight(t), case[0]))


def geometry(
    kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1
) -> Geometry:
    return Geometry(kernel, stride, tuple((p, p) for p in pad), dilation, groups)


# oneDNN as torch 2.13 ships it gives other integers for these on AVX-512 VNNI. (geometry, input, output channels)
ONEDNN_GETS_WRONG = {
    "channel multiplier, output of width 1": (geometry((1, 3), (1, 2), (0, 0), (1, 1), 3), (2, 3, 4, 4), 6),
    "one channel, output of width 1": (geometry((5, 5), (1, 2), (0, 0), (1, 1)), (1, 1, 7, 5), 1),
    "one channel, output of width 1, dilation": (geometry((5, 5), (1, 3), (0, 0), (2, 1)), (1, 1, 11, 5), 1),
    "channel multiplier 40": (geometry((3,), (1,), (1,), (1,), 8), (2, 8, 9), 320),
    "input of width 1": (geometry((3, 2), (2, 1), (1, 1), (1, 2)), (1, 8, 3, 1), 1),
    "positions within the border": (geometry((2, 1), (1, 1), (2, 2), (1, 1), 3), (1, 3, 4, 2), 6),
    "volume of depth 1": (geometry((3, 2, 3), (2, 3, 1), (1, 1, 0), (1, 2, 1), 3), (1, 3, 1, 2, 6), 9),
    "volume of depth 1, one channel": (geometry((3, 3, 3), (1, 2, 2), (2, 2, 1), (1, 1, 1)), (1, 1, 1, 2, 6), 3),
}
# ... and ends the process for these.
ONEDNN_CRASHES = """
import os, torch
from fewbit.kernels import products
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
for kernel, stride, pad, dilation, shape in (
    ((1,), (2,), (1,), (2,), (2, 4, 1)),
    ((2, 1), (3, 2), (0, 1), (2, 2), (2, 3, 4, 1)),
    ((1, 1), (2, 3), (1, 2), (2, 2), (1, 2, 5, 1)),
    ((3, 2, 1), (1, 3, 3), (2, 0, 2), (1, 2, 2), (2, 1, 2, 4, 1)),
):
    k = shape[1] * torch.Size(kernel).numel()
    codes = torch.arange(4 * k).reshape(4, k).to(torch.int8)
    matrix = PackedMatrix.pack(QTensor(codes, torch.ones(4), None, QSpec.parse("int8/channel/sym"), (4, k)))
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.uint8)
    walk = Geometry(kernel, stride, tuple((p, p) for p in pad), dilation, 1)
    results = []
    for isa in ("", "portable"):
        os.environ["FEWBIT_ISA"] = isa
        results.append(products.conv(x, torch.ones(()), torch.tensor(7), matrix, None, walk))
    assert torch.equal(*results), walk
"""


@pytest.mark.parametrize("case", ONEDNN_GETS_WRONG.values(), ids=ONEDNN_GETS_WRONG)
@pytest.mark.parametrize("zero", [0, 77])
def test_geometries_that_onednn_gets_wrong_are_right(
    isa: str, case: tuple[Geometry, tuple[int, ...], int], zero: int
) -> None:
    x, t = conv_case(case, "int8/channel/sym", "uint8/tensor/asym", 1, ones=True)
    x = Activations(x.codes, x.scale, torch.tensor(zero, dtype=torch.int32))
    result = products.conv(x.codes, x.scale, x.zero_point, pack(t), None, case[0])
    assert torch.equal(result.double(), exact_conv(x.centred(), exact_weight(t), case[0]))


def test_geometries_that_crash_onednn_are_right() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONEDNN_CRASHES], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


PLAIN = Geometry((3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 1)
DEPTHWISE = Geometry((3, 3), (1, 1), ((0, 1), (0, 1)), (1, 1), 8)


@pytest.mark.parametrize("geometry", [PLAIN, DEPTHWISE], ids=["plain", "depthwise"])
@pytest.mark.parametrize("w", ["int8/channel/sym", "uint8/channel/asym", "int4/g32/sym", "int4/g5/asym"])
@pytest.mark.parametrize("a", ["uint8/tensor/asym", "int8/channel/sym", "int16/tensor/asym"])
def test_conv_takes_channels_last_images(isa: str, geometry: Geometry, w: str, a: str) -> None:
    x, t = conv_case((geometry, (2, 8, 6, 5), 16), w, a, 3)
    plain = check_conv(x, t, geometry, torch.arange(16.0))
    last = x.codes.contiguous(memory_format=torch.channels_last)
    result = products.conv(last, x.scale, x.zero_point, pack(t), torch.arange(16.0), geometry)
    assert torch.equal(result, plain)


def test_images_without_rows_give_results_without_rows(isa: str) -> None:
    for w in ("int8/channel/sym", "int8/channel/asym", "int4/g32/sym"):
        t = pack(weight(w, 4, 18))
        x = torch.zeros(0, 2, 5, 5, dtype=torch.uint8)
        assert products.conv(x, torch.ones(()), None, t, torch.ones(4), PLAIN).shape == (0, 4, 3, 5)


def test_a_convolution_too_deep_for_int32_is_exact_all_the_same(isa: str) -> None:
    k = onednn.MAX_DEPTH + 1
    spec = QSpec.parse("int8/channel/sym")
    t = QTensor(torch.full((2, k), -128, dtype=torch.int8), torch.ones(2), None, spec, (2, k))
    x = Activations(torch.full((1, k, 1), 255, dtype=torch.uint8), torch.ones(()), None)
    check_conv(x, t, Geometry((1,), (1,), ((0, 0),), (1,), 1))


def test_one_weight_serves_convolutions_of_several_geometries_and_zero_points(isa: str) -> None:
    """TensorFlow-like layers choose the padding by the input's size; what is prepared for one must not serve others."""
    t = weight("int8/channel/sym", 4, 18)
    packed = pack(t)
    x = activations("uint8/tensor/asym", (1, 2, 7, 7))
    for padding in (((0, 1), (0, 1)), ((1, 1), (1, 1)), ((1, 1), (0, 0))):
        for stride in ((1, 1), (2, 2)):
            for zero in (0, 128, 255):
                geometry = Geometry((3, 3), stride, padding, (1, 1), 1)
                moved = Activations(x.codes, x.scale, torch.tensor(zero, dtype=torch.int32))
                result = products.conv(moved.codes, moved.scale, moved.zero_point, packed, None, geometry)
                assert torch.equal(result, check_conv(moved, t, geometry))


def test_backends_give_equal_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = integers(0, 255, (7, 240), 0).to(torch.uint8)
    image = integers(-128, 127, (2, 6, 9, 9), 1).to(torch.int8)
    geometry = Geometry((3, 3), (2, 2), ((1, 0), (2, 1)), (1, 1), 2)
    zero = torch.tensor(77, dtype=torch.int32)
    linear = pack(weight("int8/channel/asym", 33, 240, ones=True))
    conv = pack(weight("uint8/tensor/asym", 4, 27, ones=True))
    results = []
    for name in ("", "portable", "reference"):
        monkeypatch.setenv("FEWBIT_ISA", name)
        results.append(
            (
                products.linear(x, torch.ones(()), zero, linear, None),
                products.conv(image, torch.ones(()), zero - 80, conv, None, geometry),
            )
        )
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))
