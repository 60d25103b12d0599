"""The affine map against NumPy, torch's own fake quantization, and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.affine import check_finite, dequantize, fake_quantize, quantize, scale_and_zero_point
from fewbit.numbers.spec import QSpec

GRAINS = ["tensor", "channel", "channel1", "channel2", "g4", "g5", "g7", "token"]
FORMATS = ["int8", "uint8", "int4", "uint3", "int1", "uint1", "int16", "uint16", "int5"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 0.7


def fitted(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor | None]:
    blocks = spec.granularity.to_blocks(x)
    shape = spec.granularity.scale_shape(tuple(x.shape))
    return scale_and_zero_point(blocks.amin(1).reshape(shape), blocks.amax(1).reshape(shape), spec)


def numpy_blocks(x: Tensor, spec: QSpec, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and values block by block with NumPy, as [n_blocks, block]."""
    blocks = spec.granularity.to_blocks(x).numpy()
    s = scale.numpy().reshape(-1, 1)
    z = np.int64(0) if zero_point is None else zero_point.numpy().reshape(-1, 1).astype(np.int64)
    codes = np.clip(np.rint(blocks / s).astype(np.int64) + z, int(spec.qmin), int(spec.qmax))
    return torch.from_numpy(codes), torch.from_numpy((codes - z).astype(np.float32) * s)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_values_are_numpys(name: str, symmetry: str, grain: str) -> None:
    spec = QSpec.parse(f"{name}/{grain}/{symmetry}")
    x = random(3, 4, 11)
    scale, zero_point = fitted(x, spec)
    q = quantize(x, spec, scale=scale, zero_point=zero_point)
    codes, values = numpy_blocks(x, spec, scale, zero_point)
    assert q.codes.dtype == spec.format.code_dtype
    assert tuple(q.codes.shape) == spec.granularity.padded_shape((3, 4, 11))
    assert torch.equal(spec.granularity.to_blocks(q.codes.to(torch.int64)), codes)
    assert torch.equal(dequantize(q), spec.granularity.from_blocks(values, (3, 4, 11)))
    assert torch.equal(fake_quantize(x, spec, scale=scale, zero_point=zero_point), dequantize(q))


@pytest.mark.parametrize("narrow", ["", "/narrow"])
def test_the_lectures_numbers(narrow: str) -> None:
    x = torch.tensor([0.1, 0.5, 0.9, 1.2])
    spec = f"int8/tensor/sym{narrow}"
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), spec)
    assert scale == torch.tensor(1.2) / 127
    assert zero_point is None
    assert quantize(x, spec, scale=scale).codes.tolist() == [11, 53, 95, 127]
    assert quantize(x, spec, scale=torch.tensor(1.2 / 127)).codes.tolist() == [11, 53, 95, 127]
    assert quantize(x, spec, scale=torch.tensor(0.0094)).codes.tolist() == [11, 53, 96, 127]


LARGEST = {"int8": 127, "int4": 7, "int2": 1, "uint8": 255, "int1": 1, "fp8_e4m3": 448, "nf4": 1}
magnitudes = st.floats(-(2.0**100), 2.0**100, width=32)


# --- scale and zero point -----------------------------------------------------------------------


@given(
    magnitudes.filter(lambda v: v == 0 or abs(v) > 1e-25),
    magnitudes.filter(lambda v: v == 0 or abs(v) > 1e-25),
    st.sampled_from(["int8", "uint8", "int4", "uint2", "int2", "uint1", "int16", "fp8_e4m3", "fp4_e2m1", "nf4"]),
)
def test_asymmetric_zero_is_exact_and_the_range_is_covered(a: float, b: float, name: str) -> None:
    lo, hi = min(a, b), max(a, b)
    spec = QSpec.parse(f"{name}/tensor/asym")
    scale, zero_point = scale_and_zero_point(torch.tensor(lo), torch.tensor(hi), spec)
    assert zero_point is not None
    assert spec.qmin <= float(zero_point) <= spec.qmax
    x = torch.tensor([0.0, lo, hi])
    q = quantize(x, spec, scale=scale.reshape(()), zero_point=zero_point)
    values = dequantize(q)
    assert values[0] == 0
    gap = {"nf4": 0.31, "fp8_e4m3": 32.0, "fp4_e2m1": 2.0}.get(name, 1.0)  # the widest gap of the grid
    assert ((values - x).abs().double() <= 1.001 * gap * float(scale)).all()


@given(magnitudes, magnitudes)
def test_symmetric_scale_is_amax_over_the_largest_code(a: float, b: float) -> None:
    amax = max(abs(a), abs(b))
    if 0 < amax < 1e-30:
        return
    lo, hi = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    for name, largest in LARGEST.items():
        scale, zero_point = scale_and_zero_point(lo, hi, f"{name}/tensor/sym")
        assert zero_point is None
        assert scale.dtype == torch.float32
        assert float(scale) == (np.float32(np.float64(amax) / largest) if amax else 1.0)


def test_asymmetric_by_hand() -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(4.1), "uint8/tensor/asym")
    assert float(scale) == pytest.approx(5.1 / 255)
    assert zero_point is not None
    assert (int(zero_point), zero_point.dtype) == (50, torch.int32)
    scale, zero_point = scale_and_zero_point(torch.tensor(2.0), torch.tensor(5.0), "int4/tensor/asym")
    assert (float(scale), int(zero_point)) == (pytest.approx(5 / 15), -8)  # widened to hold 0
    scale, zero_point = scale_and_zero_point(torch.tensor(-5.0), torch.tensor(-2.0), "int4/tensor/asym")
    assert (float(scale), int(zero_point)) == (pytest.approx(5 / 15), 7)


def test_each_block_has_its_own() -> None:
    lo, hi = torch.tensor([[-1.0, 0.0], [-8.0, -2.0]]), torch.tensor([[1.0, 3.0], [7.0, -1.0]])
    scale, zero_point = scale_and_zero_point(lo, hi, "uint4/g8/asym")
    assert zero_point is not None
    assert scale.shape == zero_point.shape == (2, 2)
    for i, j in np.ndindex(2, 2):
        one, z = scale_and_zero_point(lo[i, j], hi[i, j], "uint4/tensor/asym")
        assert (scale[i, j], zero_point[i, j]) == (one, z)


@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "int1", "fp8_e4m3", "fp4_e2m1"])
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_a_channel_of_zeros_has_scale_1_and_codes_0(name: str, symmetry: str) -> None:
    x = random(3, 8)
    x[1] = 0
    spec = QSpec.parse(f"{name}/channel/{symmetry}")
    scale, zero_point = fitted(x, spec)
    assert scale[1] == 1
    assert zero_point is None or zero_point[1] == 0
    q = quantize(x, spec, scale=scale, zero_point=zero_point)
    assert not q.codes[1].any()
    assert not q.dequantize()[1].any()


@pytest.mark.parametrize(
    ("lo", "hi", "words"),
    [
        (float("nan"), 1.0, "not finite"), (0.0, float("inf"), "not finite"), (1.0, -1.0, "not in order"),
        (0.0, 1e-40, "subnormal"), (-1e-37, 1e-37, "subnormal"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_a_range_without_a_scale_is_refused(lo: float, hi: float, words: str, symmetry: str) -> None:
    spec = f"int8/channel/{symmetry}"
    with pytest.raises(FewbitError, match=rf"conv1\.weight.*{words}"):
        scale_and_zero_point(torch.tensor([0.0, lo]), torch.tensor([1.0, hi]), spec, "conv1.weight")


def test_a_scale_that_overflows_is_refused() -> None:
    with pytest.raises(FewbitError, match="big is so large"):
        scale_and_zero_point(torch.tensor(-3e38), torch.tensor(3e38), "uint1/tensor/asym", "big")
    scale, _ = scale_and_zero_point(torch.tensor(-3e38), torch.tensor(3e38), "uint8/tensor/asym", "big")
    assert float(scale) == pytest.approx(6e38 / 255)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_name_the_tensor(bad: float, dtype: torch.dtype) -> None:
    x = torch.ones(4, 100, dtype=dtype)
    x[2, 57] = bad
    with pytest.raises(FewbitError, match=r"layers\.3\.weight"):
        quantize(x, "int4/g32/sym", scale=torch.ones(4, 4), name="layers.3.weight")


def test_empty_and_integer_tensors_are_refused() -> None:
    for shape in [(0,), (3, 0), (0, 4)]:
        with pytest.raises(FewbitError, match="head is empty"):
            check_finite(torch.zeros(shape), "head")
    with pytest.raises(FewbitError, match=r"head has dtype torch\.int64"):
        check_finite(torch.zeros(3, dtype=torch.int64), "head")


def test_a_scale_of_another_shape_is_refused() -> None:
    x = random(4, 6)
    with pytest.raises(FewbitError, match=r"w: the scale of int8/channel/sym has shape \(4,\), not \(6,\)"):
        quantize(x, "int8/channel/sym", scale=torch.ones(6), name="w")
    with pytest.raises(FewbitError, match="zero point"):
        quantize(x, "int8/channel/asym", scale=torch.ones(4), zero_point=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(FewbitError, match="scale"):
        fake_quantize(x, "int8/g4/sym", scale=torch.ones(4))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-40])
def test_a_scale_that_is_no_positive_number_is_refused(bad: float) -> None:
    with pytest.raises(FewbitError, match="scale"):
        quantize(random(2, 4), "int8/channel/sym", scale=torch.tensor([1.0, bad]), name="w")


# --- dtypes and memory --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_the_codes_of_their_values(dtype: torch.dtype) -> None:
    x = random(5, 16).to(dtype)
    scale = torch.full((5,), 0.05)
    q = quantize(x, "int8/channel/sym", scale=scale)
    assert torch.equal(q.codes, quantize(x.float(), "int8/channel/sym", scale=scale).codes)
    assert q.dequantize().dtype == torch.float32
    assert fake_quantize(x, "int8/channel/sym", scale=scale).dtype == dtype


def test_float64_is_not_squeezed_through_float32() -> None:
    x = torch.tensor([0.5 + 1e-12, 0.5 - 1e-12], dtype=torch.float64)
    assert quantize(x, "int8/tensor/sym", scale=torch.tensor(1.0)).codes.tolist() == [1, 0]


@pytest.mark.parametrize(
    "spec", ["int8/tensor/sym", "int8/channel/asym", "int4/g4/asym", "fp8_e4m3/token/sym", "nf4/g4/sym"]
)
def test_inputs_are_left_alone_and_strides_do_not_matter(spec: str) -> None:
    x = random(6, 10).T
    parsed = QSpec.parse(spec)
    scale, zero_point = fitted(x, parsed)
    before = x.clone(), scale.clone()
    q = quantize(x, spec, scale=scale, zero_point=zero_point)
    same = quantize(x.contiguous(), spec, scale=scale, zero_point=zero_point)
    assert torch.equal(q.codes, same.codes)
    dequantize(q)
    fake_quantize(x, spec, scale=scale, zero_point=zero_point)
    assert torch.equal(x, before[0])
    assert torch.equal(scale, before[1])


def test_a_number_without_dimensions() -> None:
    q = quantize(torch.tensor(0.6), "int8/tensor/sym", scale=torch.tensor(0.25))
    assert (q.codes.item(), q.dequantize().item(), q.dequantize().shape) == (2, 0.5, ())
    assert fake_quantize(torch.tensor(0.6), "int8/tensor/sym", scale=torch.tensor(0.25)).item() == 0.5


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(["int8", "int4", "uint4", "int2"]), st.booleans())
def test_quantizing_twice_changes_nothing(rows: int, columns: int, name: str, symmetric: bool) -> None:
    spec = QSpec.parse(f"{name}/g8/{'sym' if symmetric else 'asym'}")
    x = random(rows, columns, seed=rows * 100 + columns)
    scale, zero_point = fitted(x, spec)
    once = quantize(x, spec, scale=scale, zero_point=zero_point)
    again = quantize(once.dequantize(), spec, scale=scale, zero_point=zero_point)
    assert torch.equal(again.codes, once.codes)


# --- the straight-through gradient --------------------------------------------------------------


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("name", ["int4/sym", "uint4/asym", "int8/asym", "fp4_e2m1/sym", "nf4/sym"])
def test_the_gradient_is_1_inside_and_0_where_clipped(name: str, grain: str) -> None:
    fmt, symmetry = name.split("/")
    spec = QSpec.parse(f"{fmt}/{grain}/{symmetry}")
    x = random(3, 4, 11)
    scale, zero_point = fitted(x, spec)
    scale = scale / 2  # so that some are clipped
    x.requires_grad_()
    out = fake_quantize(x, spec, scale=scale, zero_point=zero_point)
    upstream = random(3, 4, 11, seed=1)
    (gradient,) = torch.autograd.grad(out, x, upstream)

    blocks = spec.granularity.to_blocks(x.detach()).numpy()
    z = 0.0 if zero_point is None else zero_point.numpy().reshape(-1, 1)
    ratio = blocks / scale.numpy().reshape(-1, 1)
    q = (np.rint(ratio) if spec.format.is_integer else ratio) + z
    inside = torch.from_numpy((q >= spec.qmin) & (q <= spec.qmax))
    inside = spec.granularity.from_blocks(inside, (3, 4, 11))
    assert not inside.all()
    assert inside.any()
    assert torch.equal(gradient, torch.where(inside, upstream, 0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_has_the_inputs_dtype_and_scale_gets_none(dtype: torch.dtype) -> None:
    x = random(4, 8).to(dtype).requires_grad_()
    scale = torch.full((4,), 0.1, requires_grad=True)
    out = fake_quantize(x, "int4/channel/sym", scale=scale)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert scale.grad is None


def test_values_and_gradients_are_torchs() -> None:
    x = random(5, 64).requires_grad_()
    theirs_x = x.detach().clone().requires_grad_()
    scale = torch.tensor([2.0**-k for k in range(5)])
    zero_point = torch.tensor([0, 3, -8, 7, 1], dtype=torch.int32)
    mine = fake_quantize(x, "int4/channel/asym", scale=scale, zero_point=zero_point)
    theirs = torch.fake_quantize_per_channel_affine(theirs_x, scale, zero_point, 0, -8, 7)
    assert torch.equal(mine, theirs)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, theirs_x.grad)


def test_fake_quantize_never_hides_nan_or_infinity() -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.tensor([0.5, bad])
        try:
            out = fake_quantize(x, "int8/tensor/sym", scale=torch.tensor(0.1))
        except FewbitError:
            continue
        assert not torch.isfinite(out[1])
