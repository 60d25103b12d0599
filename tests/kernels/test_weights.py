"""Packed matrices: nothing is lost on the way in and out, in any format."""

from __future__ import annotations

import pytest
import torch
from product_cases import exact_weight, weight

from fewbit.errors import FewbitError
from fewbit.kernels import weights
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.formats import all_formats
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

GRAINS = ["tensor", "channel", "channel1", "g32", "g5", "token"]
FORMATS = [fmt.name for fmt in all_formats() if fmt.name != "fp32"]


def fmt_reaches_float32(spec: QSpec) -> bool:
    """Whether a scale that uses the whole range would be subnormal."""
    return spec.qmax > 1e30


def quantized(text: str, rows: int = 6, columns: int = 50) -> QTensor:
    """Random values, quantized by their own range."""
    spec = QSpec.parse(text)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    shape = spec.granularity.scale_shape((rows, columns))
    if fmt_reaches_float32(spec):
        zero = None if spec.symmetric else torch.full(shape, 0.5)
        return quantize(x, spec, scale=torch.full(shape, 0.7), zero_point=zero)
    blocks = spec.granularity.to_blocks(x)
    scale, zero = scale_and_zero_point(blocks.amin(1), blocks.amax(1), spec)
    return quantize(x, spec, scale=scale.reshape(shape), zero_point=None if zero is None else zero.reshape(shape))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_pack_and_unpack_give_the_same_tensor(fmt: str, grain: str, symmetry: str) -> None:
    t = quantized(f"{fmt}/{grain}/{symmetry}")
    packed = PackedMatrix.pack(t)
    back = packed.unpack()
    assert back.codes.dtype == t.codes.dtype
    assert back.codes.shape == t.codes.shape
    assert torch.equal(back.codes.contiguous().view(torch.uint8), t.codes.contiguous().view(torch.uint8))
    assert torch.equal(back.scale, t.scale)
    assert (back.spec, back.shape) == (t.spec, t.shape)
    if t.zero_point is None:
        assert back.zero_point is None
    else:
        assert back.zero_point is not None
        assert back.zero_point.dtype == t.zero_point.dtype
        assert torch.equal(back.zero_point, t.zero_point)


@pytest.mark.parametrize("fmt", FORMATS)
def test_packed_bytes_are_what_the_qtensor_says(fmt: str) -> None:
    t = quantized(f"{fmt}/g32/asym")
    packed = PackedMatrix.pack(t)
    assert packed.zero_point is not None
    buffers = (packed.codes, packed.scale, packed.zero_point)
    held = sum(tensor.numel() * tensor.element_size() for tensor in buffers)
    # Zero points of formats that are no integers are float32, whatever the format's width.
    wider = 0 if t.spec.format.is_integer else t.scale.numel() * 4 - -(-t.scale.numel() * t.spec.bits // 8)
    assert held == t.nbytes + wider


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_dequantize_equals_the_qtensor_s_own(fmt: str, grain: str, symmetry: str) -> None:
    t = quantized(f"{fmt}/{grain}/{symmetry}")
    assert torch.equal(weights.dequantize(PackedMatrix.pack(t)), t.dequantize())


SPECS = [
    "int4/g32/asym",
    "int4/g32/asym/f16",
    "int8/channel/sym/bf16",
    "int8/channel/sym",
    "int3/channel/asym",
    "nf4/g32/sym",
    "int8/tensor/sym",
]


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (3, 32), (3, 33)])
def test_dequantize_takes_any_shape(text: str, shape: tuple[int, int]) -> None:
    t = quantized(text, *shape)
    result = weights.dequantize(PackedMatrix.pack(t))
    assert result.shape == shape
    assert torch.equal(result, t.dequantize())


@pytest.mark.parametrize("text", SPECS)
def test_dequantize_takes_no_rows(text: str) -> None:
    """What an embedding looks up for an empty batch of indices."""
    spec = QSpec.parse(text)
    scale = torch.ones(spec.granularity.scale_shape((0, 40)))
    zero = None if spec.symmetric else torch.zeros(0, dtype=torch.uint8)
    none = PackedMatrix(torch.zeros(0, dtype=torch.uint8), scale, zero, spec, (0, 40))
    assert weights.dequantize(none).shape == (0, 40)


def test_only_matrices_are_packed() -> None:
    t = quantize(torch.ones(2, 2, 2), "int8/tensor/sym", scale=torch.tensor(1.0))
    with pytest.raises(FewbitError, match=r"matrix, not with shape \(2, 2, 2\)"):
        PackedMatrix.pack(t)


INTEGERS = [fmt.name for fmt in all_formats() if fmt.is_integer]


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("grain", ["tensor", "channel", "g32", "token"])
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_the_integer_form_stands_for_the_same_values(fmt: str, grain: str, symmetry: str) -> None:
    t = weight(f"{fmt}/{grain}/{symmetry}", 5, 70)
    form = weights.integer_matrix(PackedMatrix.pack(t))
    assert form.codes.shape == (5, 70)
    assert form.codes.dtype == (torch.int16 if t.spec.bits > 8 else torch.int8)
    assert form.scale.shape == (5, 3 if grain == "g32" else 1)
    assert form.codes.is_contiguous()
    assert form.group == (32 if grain == "g32" else 70)
    column = torch.arange(70) // form.group
    zero = torch.zeros(5, 3, dtype=torch.int32) if form.zero_point is None else form.zero_point
    values = (form.codes.double() - zero[:, column].double()) * form.scale[:, column].double()
    assert torch.equal(values, exact_weight(t))


@pytest.mark.parametrize("fmt", ["uint8", "uint16"])
def test_unsigned_codes_that_fill_their_type_move_below_zero_with_their_zero_points(fmt: str) -> None:
    half = 128 if fmt == "uint8" else 32768
    t = weight(f"{fmt}/channel/asym", 3, 8)
    form = weights.integer_matrix(PackedMatrix.pack(t))
    assert form.zero_point is not None
    assert t.zero_point is not None
    assert torch.equal(form.codes.int() + half, t.codes.int())
    assert torch.equal(form.zero_point[:, 0] + half, t.zero_point)
    symmetric = weights.integer_matrix(PackedMatrix.pack(weight(f"{fmt}/channel/sym", 3, 8)))
    assert symmetric.zero_point is not None
    assert (symmetric.zero_point == -half).all()


@pytest.mark.parametrize("bits", range(1, 8))
def test_narrower_unsigned_codes_fit_as_they_are(bits: int) -> None:
    """A shift would only bring a zero point to subtract again, and its rounding."""
    t = weight(f"uint{bits}/channel/sym", 3, 20)
    form = weights.integer_matrix(PackedMatrix.pack(t))
    assert form.zero_point is None
    assert torch.equal(form.codes.int(), t.codes.int())


def test_zero_points_that_are_all_zero_are_dropped() -> None:
    t = weight("int8/channel/asym", 3, 8)
    none = QTensor(t.codes, t.scale, torch.zeros(3, dtype=torch.int32), t.spec, t.shape)
    assert weights.integer_matrix(PackedMatrix.pack(none)).zero_point is None
    assert weights.integer_matrix(PackedMatrix.pack(t)).zero_point is not None


def test_what_has_no_integer_form_is_refused() -> None:
    with pytest.raises(FewbitError, match="need integer weights, not fp8_e4m3"):
        weights.integer_matrix(PackedMatrix.pack(quantized("fp8_e4m3/channel/sym")))
    with pytest.raises(FewbitError, match="int8/channel1/sym: integer products need weight scales"):
        weights.integer_matrix(PackedMatrix.pack(weight("int8/channel1/sym", 3, 8)))
