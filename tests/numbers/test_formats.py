from __future__ import annotations

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.numbers.format import Format, bytes_per_value
from fewbit.numbers.formats import all_formats, get_format, table

PROMISED = ["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "nf4", "int16", "uint16"]
PROMISED += [f"{sign}int{bits}" for bits in range(1, 9) for sign in ("", "u")]


def test_every_promised_format_is_there() -> None:
    assert set(PROMISED) <= {fmt.name for fmt in all_formats()}


@pytest.mark.parametrize("fmt", all_formats(), ids=lambda f: f.name)
def test_every_format_keeps_the_promise(fmt: Format) -> None:
    assert isinstance(fmt, Format)
    assert get_format(fmt.name) == fmt
    assert fmt.use
    assert bytes_per_value(fmt) == fmt.bits / 8
    torch.manual_seed(0)
    x = torch.randn(500) * min(fmt.qmax - fmt.qmin, 1e3) / 2
    grid = fmt.round(x)
    assert torch.equal(fmt.round(grid), grid)
    assert torch.equal(fmt.decode(fmt.encode(grid)), grid)
    assert fmt.encode(grid).dtype == fmt.code_dtype
    assert fmt.qmin <= grid.min()
    assert grid.max() <= fmt.qmax


def test_table_has_a_row_for_each() -> None:
    rows = {row["format"]: row for row in table()}
    assert list(rows) == [fmt.name for fmt in all_formats()]
    int4 = {key: value for key, value in rows["int4"].items() if key != "use"}
    assert int4 == {"format": "int4", "bits": 4, "min": -8.0, "max": 7.0, "step": 1.0, "bytes": 0.5}
    assert (rows["fp8_e4m3"]["max"], rows["fp8_e4m3"]["step"]) == (448.0, 2.0**-9)


def test_an_unknown_format_is_named_with_what_there_is() -> None:
    with pytest.raises(FewbitError, match=r"'int9'.*int8.*nf4"):
        get_format("int9")
