"""Bit packing against a stream built with Python's big integers, which cannot overflow, wrap or mis-shift."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.integer import WIDTHS, IntegerFormat
from fewbit.numbers.packing import pack, packed_size, unpack

KINDS = [IntegerFormat(bits, signed) for bits in WIDTHS for signed in (True, False)]


def stream(codes: Tensor, bits: int) -> list[int]:
    """Value i at bits i·b and up, least significant first, bytes in little-endian order."""
    whole = sum((code % 2**bits) << (bits * i) for i, code in enumerate(codes.tolist()))
    return list(whole.to_bytes(-(-codes.numel() * bits // 8), "little"))


def all_codes(fmt: IntegerFormat) -> Tensor:
    return torch.arange(fmt.qmin, fmt.qmax + 1, dtype=torch.int32).to(fmt.code_dtype)


@pytest.mark.parametrize("fmt", KINDS, ids=lambda f: f.name)
def test_every_code_round_trips_at_every_offset(fmt: IntegerFormat) -> None:
    codes = all_codes(fmt)
    for lead in range(9):  # a code starts at every bit of a byte
        padded = torch.cat([codes[:1].repeat(lead), codes])
        data = pack(padded, fmt.bits)
        assert data.dtype == torch.uint8
        assert data.shape == (packed_size(padded.numel(), fmt.bits),)
        back = unpack(data, fmt.bits, padded.numel(), fmt.signed)
        assert back.dtype == fmt.code_dtype
        assert torch.equal(back.to(torch.int32), padded.to(torch.int32))


@pytest.mark.parametrize("fmt", KINDS, ids=lambda f: f.name)
def test_the_layout_is_the_documented_stream(fmt: IntegerFormat) -> None:
    generator = torch.Generator().manual_seed(fmt.bits)
    for count in [*range(20), 63, 64, 65, 1001]:
        codes = torch.randint(int(fmt.qmin), int(fmt.qmax) + 1, (count,), generator=generator).to(fmt.code_dtype)
        assert pack(codes, fmt.bits).tolist() == stream(codes, fmt.bits)


def test_the_layout_by_hand() -> None:
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([-1, 0, 1], dtype=torch.int8), 2).tolist() == [0b00_01_00_11]
    assert pack(torch.tensor([5, 3, 7], dtype=torch.uint8), 3).tolist() == [0b11_011_101, 0b1]
    assert pack(torch.tensor([-2, 258], dtype=torch.int16), 16).tolist() == [0xFE, 0xFF, 0x02, 0x01]


@given(st.data(), st.sampled_from(KINDS))
def test_any_codes_round_trip(data, fmt: IntegerFormat) -> None:
    values = data.draw(st.lists(st.integers(int(fmt.qmin), int(fmt.qmax)), max_size=70))
    codes = torch.tensor(values, dtype=torch.int32).to(fmt.code_dtype)
    packed = pack(codes, fmt.bits)
    assert packed.tolist() == stream(codes, fmt.bits)
    assert unpack(packed, fmt.bits, len(values), fmt.signed).tolist() == values


def test_any_shape_and_stride_packs_in_c_order() -> None:
    codes = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4) % 8
    assert torch.equal(pack(codes, 3), pack(codes.flatten(), 3))
    assert torch.equal(pack(codes.permute(2, 0, 1), 3), pack(codes.permute(2, 0, 1).flatten(), 3))


def test_the_input_is_left_alone_and_not_shared() -> None:
    for bits in (4, 8):
        codes = torch.tensor([1, 2, 3], dtype=torch.uint8)
        data = pack(codes, bits)
        back = unpack(data, bits, 3, signed=False)
        data.fill_(0)
        assert codes.tolist() == back.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", [0, -1, 9, 12, 32])
def test_other_widths_are_refused(bits: int) -> None:
    codes = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(FewbitError, match=f"not {bits}"):
        pack(codes, bits)
    with pytest.raises(FewbitError, match=f"not {bits}"):
        unpack(codes, bits, 4, signed=False)


def test_data_of_another_length_is_refused() -> None:
    with pytest.raises(FewbitError, match="9 codes of 4 bits need 5 bytes, not 4"):
        unpack(torch.zeros(4, dtype=torch.uint8), 4, 9, signed=False)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.int16, 4), (torch.int32, 8), (torch.int64, 16), (torch.uint8, 16)])
def test_codes_of_the_wrong_dtype_are_refused_not_garbled(dtype: torch.dtype, bits: int) -> None:
    with pytest.raises(FewbitError, match=r"dtype|torch"):
        pack(torch.zeros(8, dtype=dtype), bits)
