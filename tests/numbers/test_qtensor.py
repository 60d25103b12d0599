"""Bytes counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.packing import pack
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec


def make(spec: str, *shape: int) -> QTensor:
    torch.manual_seed(0)
    x = torch.randn(shape)
    blocks = QSpec.parse(spec).granularity.to_blocks(x)
    scale, zero_point = scale_and_zero_point(blocks.amin(1), blocks.amax(1), spec)
    wanted = QSpec.parse(spec).granularity.scale_shape(shape)
    return quantize(
        x,
        spec,
        scale=scale.reshape(wanted),
        zero_point=None if zero_point is None else zero_point.reshape(wanted),
    )


@pytest.mark.parametrize(
    ("spec", "shape", "nbytes", "padding"),
    [
        ("int8/tensor/sym", (64, 100), 6400 + 4, 0),
        ("int8/channel/sym", (64, 100), 6400 + 64 * 4, 0),
        ("uint8/channel1/asym", (64, 100), 6400 + 100 * 4 + 100, 0),
        (
            "int4/channel/sym",
            (3, 5),
            8 + 3 * 4,
            0,
        ),  # 15 codes of 4 bits: 7.5 bytes, rounded up once for the whole tensor
        ("int4/g128/asym", (4096, 4096), 4096 * 4096 // 2 + 131072 * 4 + 131072 // 2, 0),
        ("int3/g32/sym", (2, 70), 2 * 96 * 3 // 8 + 2 * 3 * 4, 2 * 26),  # 70 -> 96: three groups a row
        ("int3/g32/asym", (2, 70), 72 + 24 + 3, 52),  # 6 zero points of 3 bits: 18 bits, 3 bytes
        ("int4/g128/sym/f16", (128, 256), 128 * 256 // 2 + 256 * 2, 0),
        ("int3/g32/asym/bf16", (2, 70), 72 + 12 + 3, 52),
        ("int1/tensor/sym", (9,), 2 + 4, 0),
        ("int16/token/sym", (2, 3, 4), 48 + 24, 0),
        ("nf4/g64/sym", (128, 64), 128 * 64 // 2 + 128 * 4, 0),
        ("fp8_e4m3/channel/sym", (2, 8), 16 + 8, 0),
    ],
)
def test_nbytes(spec: str, shape: tuple[int, ...], nbytes: int, padding: int) -> None:
    q = make(spec, *shape)
    assert q.nbytes == nbytes
    assert q.padding == padding
    assert q.bits_per_weight == nbytes * 8 / torch.Size(shape).numel()


def test_bits_per_weight_of_the_usual_groups() -> None:
    assert make("int4/g128/sym", 128, 256).bits_per_weight == 4 + 32 / 128
    assert make("int4/g32/asym", 128, 256).bits_per_weight == 4 + 36 / 32
    assert make("int4/g128/sym/f16", 128, 256).bits_per_weight == 4.125
    assert make("int4/g128/asym/f16", 128, 256).bits_per_weight == 4.15625


@pytest.mark.parametrize("spec", ["int4/g32/asym", "uint3/channel/asym", "int8/tensor/sym"])
def test_nbytes_is_what_packing_takes(spec: str) -> None:
    q = make(spec, 6, 50)
    packed = pack(q.codes, q.spec.bits).numel() + q.scale.numel() * q.scale.element_size()
    if q.zero_point is not None:
        packed += pack(q.zero_point.to(q.codes.dtype), q.spec.bits).numel()
    assert q.nbytes == packed


def test_codes_have_the_padded_shape_and_values_the_original_one() -> None:
    q = make("int4/g32/sym", 3, 40)
    assert q.codes.shape == (3, 64)
    assert q.scale.shape == (3, 2)
    assert q.dequantize().shape == (3, 40)
    assert q.dequantize().dtype == torch.float32
    assert not q.codes[:, 40:].any()


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("int8/tensor/sym", 4).scale = torch.tensor(2.0)  # type: ignore[misc]
