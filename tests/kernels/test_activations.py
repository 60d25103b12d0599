"""Activations to codes: the same map as everywhere, on tensors of any shape and memory order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.kernels.activations import integer_activations, quantize_dynamic, quantize_static
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec

TINY = torch.finfo(torch.float32).tiny
STATIC = ["uint8/tensor/asym", "int8/tensor/sym", "int8/tensor/sym/narrow", "int4/tensor/asym", "int16/tensor/asym"]
DYNAMIC = [
    "int8/token/sym",
    "int8/token/asym",
    "uint8/token/asym",
    "int4/token/sym",
    "int16/token/sym",
    "int2/token/sym",
]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- static -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", STATIC)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_static_codes_are_the_affine_map_s(text: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    spec, x = QSpec.parse(text), (normal(*shape) * 3).to(dtype)
    scale = torch.tensor(0.02 if spec.bits == 8 else 0.4)
    zero = None if spec.symmetric else torch.tensor(5, dtype=torch.int32)
    codes = quantize_static(x, scale, zero, spec)
    assert codes.dtype == spec.format.code_dtype
    assert torch.equal(codes, affine.quantize(x.float(), spec, scale=scale, zero_point=zero).codes)


@given(
    st.lists(FLOATS, min_size=1, max_size=40),
    st.floats(2.0**-100, 2.0**100, width=32),
    st.integers(0, 255),
)
def test_static_codes_of_any_numbers(values: list[float], scale: float, zero_point: int) -> None:
    x, s, z = torch.tensor(values), torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
    codes = quantize_static(x, s, z, QSpec.parse("uint8/tensor/asym"))
    assert torch.equal(codes, affine.quantize(x, "uint8/tensor/asym", scale=s, zero_point=z).codes)


@pytest.mark.parametrize("text", ["uint1/tensor/asym", "uint4/tensor/asym", "uint8/tensor/asym", "uint16/tensor/asym"])
def test_static_codes_have_the_format_s_dtype(text: str) -> None:
    """Tracing promises this dtype to what comes behind."""
    spec = QSpec.parse(text)
    zero = torch.tensor(1, dtype=torch.int32)
    codes = quantize_static(normal(4, 4).abs(), torch.tensor(1e-4), zero, spec)
    assert codes.dtype == spec.format.code_dtype


ORDERS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "flat permuted": lambda x: x.permute(3, 0, 2, 1),
    "a slice": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "one channel": lambda x: x[:, :1].contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_static_codes_stand_where_their_values_stood(order: object) -> None:
    x = order(normal(2, 4, 5, 6))  # type: ignore[operator]
    spec, scale, zero = QSpec.parse("uint8/tensor/asym"), torch.tensor(0.02), torch.tensor(99, dtype=torch.int32)
    codes = quantize_static(x, scale, zero, spec)
    assert torch.equal(codes, affine.quantize(x, spec, scale=scale, zero_point=zero).codes)


@pytest.mark.parametrize("name", ["channels last", "transposed", "flat permuted"])
def test_static_codes_keep_the_memory_order_of_dense_tensors(name: str) -> None:
    x = ORDERS[name](normal(2, 4, 5, 6))
    codes = quantize_static(x, torch.tensor(0.02), None, QSpec.parse("int8/tensor/sym"))
    assert codes.stride() == x.stride()


def test_static_codes_of_nothing() -> None:
    spec = QSpec.parse("int8/tensor/sym")
    for shape in ((0,), (0, 5), (2, 0, 3)):
        assert quantize_static(torch.zeros(shape), torch.tensor(1.0), None, spec).shape == shape


def test_codes_carry_no_gradient() -> None:
    x = normal(3, 4).requires_grad_()
    assert not quantize_static(x, torch.tensor(1.0), None, QSpec.parse("int8/tensor/sym")).requires_grad
    for part in quantize_dynamic(x, QSpec.parse("int8/token/asym")):
        assert part is not None
        assert not part.requires_grad


# --- dynamic ------------------------------------------------------------------------------------


def formula(row: Tensor, spec: QSpec) -> tuple[float, int]:
    """Scale and zero point of one block, in float64 from the range."""
    low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
    if low == high:
        return 1.0, 0
    if spec.symmetric:
        return max(max(-low, high) / spec.qmax, TINY), 0
    scale = max((high - low) / (spec.qmax - spec.qmin), TINY)
    return scale, int(min(max(round(spec.qmin - low / scale), spec.qmin), spec.qmax))


@pytest.mark.parametrize("text", DYNAMIC)
@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (2, 3, 16), (1, 1, 1, 33), (50,)])
@pytest.mark.parametrize("one_sided", [False, True])
def test_dynamic_codes_follow_the_formula_of_each_token(text: str, shape: tuple[int, ...], one_sided: bool) -> None:
    spec = QSpec.parse(text)
    x = normal(*shape, seed=1)
    x = x.abs() if one_sided else x
    codes, scale, zero = quantize_dynamic(x, spec)
    assert codes.shape == shape
    assert codes.dtype == spec.format.code_dtype
    assert scale.shape == shape[:-1]
    assert (zero is None) == spec.symmetric
    wanted = [formula(row, spec) for row in x.reshape(-1, shape[-1])]
    assert torch.allclose(scale.reshape(-1).double(), torch.tensor([s for s, _ in wanted]).double(), rtol=2e-7, atol=0)
    if zero is not None:
        assert zero.dtype == torch.int32
        assert zero.reshape(-1).tolist() == [z for _, z in wanted]
    again = affine.quantize(x, spec, scale=scale, zero_point=zero).codes
    assert torch.equal(codes, again)


@given(st.lists(FLOATS, min_size=1, max_size=30), st.sampled_from(DYNAMIC))
def test_no_value_is_clipped_and_zero_is_exact(values: list[float], text: str) -> None:
    spec, x = QSpec.parse(text), torch.tensor([[*values, 0.0]])
    codes, scale, zero = quantize_dynamic(x, spec)
    back = scale[:, None].double() * (codes.double() - (0 if zero is None else zero[:, None].double()))
    assert back[0, -1] == 0
    # Half a step of rounding; of the zero point half a step more.
    step = float(scale) * (0.5 if spec.symmetric else 1.0)
    assert float((back - x.double()).abs().max()) <= step * (1 + 1e-4)


@pytest.mark.parametrize("text", DYNAMIC)
def test_zeros_have_scale_1_and_give_zeros(text: str) -> None:
    codes, scale, zero = quantize_dynamic(torch.tensor([[0.0, -0.0], [1.0, 0.0]]), QSpec.parse(text))
    assert scale[0] == 1.0
    assert not (codes[0].int() - (0 if zero is None else zero[0])).any()


@pytest.mark.parametrize("text", DYNAMIC)
@pytest.mark.parametrize("value", [1e-45, 1e-40, 1e-38, 1e-36])
def test_scales_are_never_subnormal(text: str, value: float) -> None:
    x = torch.tensor([[value, -value, 0.0]])
    codes, scale, zero = quantize_dynamic(x, QSpec.parse(text))
    assert scale.item() >= TINY
    back = scale[:, None] * (codes.float() - (0 if zero is None else zero[:, None]))
    assert (back - x).abs().max() <= scale.max()


@pytest.mark.parametrize("text", ["int8/token/sym", "int8/token/asym", "int4/token/sym"])
def test_the_largest_floats_do_not_overflow_the_scale(text: str) -> None:
    codes, scale, zero = quantize_dynamic(torch.tensor([[3.4e38, -3.4e38, 0.0]]), QSpec.parse(text))
    assert torch.isfinite(scale).all()
    back = scale[:, None].double() * (codes.double() - (0 if zero is None else zero[:, None]))
    assert back[0, 0] > 3.2e38
    assert back[0, 1] < -3.2e38


@pytest.mark.parametrize("text", [*DYNAMIC, "int8/tensor/sym", "int8/channel/sym"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_dynamic_codes_of_nothing(text: str, shape: tuple[int, ...]) -> None:
    spec = QSpec.parse(text)
    codes, scale, zero = quantize_dynamic(torch.zeros(shape), spec)
    assert codes.shape == shape
    assert codes.dtype == spec.format.code_dtype
    assert scale.shape == spec.granularity.scale_shape(shape)
    assert (zero is None) == spec.symmetric


def test_dynamic_per_tensor_and_per_sample() -> None:
    x = normal(3, 4, 5)
    codes, scale, _ = quantize_dynamic(x, QSpec.parse("int8/tensor/sym"))
    assert scale == x.abs().max() / 127
    codes, scale, _ = quantize_dynamic(x, QSpec.parse("int8/channel/sym"))
    assert torch.equal(scale, x.abs().amax((1, 2)) / 127)
    assert torch.equal(codes, torch.round(x / scale[:, None, None]).to(torch.int8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dynamic_codes_of_other_floats_are_those_of_their_float32(dtype: torch.dtype) -> None:
    x, spec = normal(3, 8).to(dtype), QSpec.parse("int8/token/sym")
    for a, b in zip(quantize_dynamic(x, spec)[:2], quantize_dynamic(x.float(), spec)[:2]):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_one_bit_codes_take_their_scale_from_the_negative_side() -> None:
    codes, scale, _ = quantize_dynamic(torch.tensor([[1.0, -2.0]]), QSpec.parse("int1/token/sym"))
    assert scale.item() == 2.0
    assert codes.tolist() == [[0, -1]]


@pytest.mark.parametrize("text", DYNAMIC)
def test_nan_comes_out_as_nan(text: str) -> None:
    """A model whose activations became NaN says so instead of going on with codes made up from them."""
    x = normal(2, 40)
    x[1, 17] = torch.nan
    codes, scale, zero = quantize_dynamic(x, QSpec.parse(text))
    back = scale[:, None] * (codes.float() - (0 if zero is None else zero[:, None]))
    assert back[1].isnan().any()
    assert torch.isfinite(back[0]).all()


# --- which specs serve --------------------------------------------------------------------------


def test_integer_activations_tells_why_not() -> None:
    assert integer_activations(QSpec.parse("uint8/tensor/asym"), dynamic=False) is None
    assert integer_activations(QSpec.parse("int8/token/sym"), dynamic=True) is None
    assert "fp8_e4m3" in str(integer_activations(QSpec.parse("fp8_e4m3/tensor/sym"), dynamic=False))
    assert "one scale" in str(integer_activations(QSpec.parse("int8/token/sym"), dynamic=False))


@pytest.mark.parametrize(
    "text", ["int8/g48/sym", "int8/g32/asym", "uint8/g32/asym", "int16/g32/sym", "int8/channel1/sym"]
)
def test_granularities_that_no_product_can_take_are_told(text: str) -> None:
    """A scale that changes along K must change where the kernels' groups do."""
    assert integer_activations(QSpec.parse("int8/g32/sym"), dynamic=True) is None
    assert integer_activations(QSpec.parse(text), dynamic=True) is not None
