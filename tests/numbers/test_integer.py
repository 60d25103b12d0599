from __future__ import annotations

import pytest
import torch

from fewbit.numbers.integer import WIDTHS, IntegerFormat, known, parse


@pytest.mark.parametrize("bits", WIDTHS)
def test_ranges_are_twos_complement(bits: int) -> None:
    signed, unsigned = IntegerFormat(bits, signed=True), IntegerFormat(bits, signed=False)
    assert (signed.qmin, signed.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (unsigned.qmin, unsigned.qmax) == (0, 2**bits - 1)
    for fmt in (signed, unsigned):
        assert fmt.smallest_step == 1.0
        info = torch.iinfo(fmt.code_dtype)
        assert info.min <= fmt.qmin
        assert fmt.qmax <= info.max
        assert info.bits == (8 if bits <= 8 else 16)


@pytest.mark.parametrize("fmt", known(), ids=lambda f: f.name)
def test_every_code_decodes_to_itself_and_back(fmt: IntegerFormat) -> None:
    values = torch.arange(fmt.qmin, fmt.qmax + 1)
    codes = fmt.encode(values)
    assert codes.dtype == fmt.code_dtype
    assert torch.equal(fmt.decode(codes), values)
    assert torch.equal(fmt.round(values), values)


def test_rounds_half_to_even_and_saturates() -> None:
    x = torch.tensor([-9.0, -8.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.49, 7.5, 1e30])
    assert IntegerFormat(4, True).round(x).tolist() == [-8, -8, -2, -2, 0, 0, 2, 2, 7, 7, 7]
    assert IntegerFormat(4, False).round(x).tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 7, 8, 15]


def test_round_leaves_its_input_alone() -> None:
    x = torch.tensor([0.4, 300.0])
    IntegerFormat(8, True).round(x)
    assert x.tolist() == [pytest.approx(0.4), 300.0]


@pytest.mark.parametrize("name", ["int0", "int9", "int32", "sint8", "int", "uint", "Int8", "int8 ", "fp16", ""])
def test_other_names_are_not_integers(name: str) -> None:
    assert parse(name) is None


def test_names_round_trip() -> None:
    assert len(known()) == 18
    assert [parse(fmt.name) for fmt in known()] == known()
