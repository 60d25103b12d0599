"""Input quantizers."""

from __future__ import annotations

import json

import pytest
import torch

from fewbit.nn.quantizers import DynamicQuantizer, StaticQuantizer, quantizer_from_config
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec


def static(text: str = "uint8/tensor/asym") -> StaticQuantizer:
    spec = QSpec.parse(text)
    zero = None if spec.symmetric else torch.tensor(100, dtype=torch.int32)
    return StaticQuantizer(spec, torch.tensor(0.05), zero)


def test_static_codes_come_with_their_scale_and_zero_point() -> None:
    quantizer, x = static(), torch.randn(3, 4)
    codes, scale, zero = quantizer(x)
    assert scale is quantizer.scale
    assert zero is quantizer.zero_point
    wanted = affine.quantize(x, quantizer.spec, scale=quantizer.scale, zero_point=quantizer.zero_point)
    assert torch.equal(codes, wanted.codes)


def test_dynamic_codes_come_with_a_scale_for_each_token() -> None:
    codes, scale, zero = DynamicQuantizer(QSpec.parse("int8/token/sym"))(torch.tensor([[1.0, -2.0], [0.0, 4.0]]))
    assert codes.tolist() == [[64, -127], [0, 127]]  # 63.5 is a tie
    assert torch.equal(scale, torch.tensor([2.0, 4.0]) / 127)
    assert zero is None


@pytest.mark.parametrize(
    "text", ["uint8/tensor/asym", "int8/tensor/sym", "int8/tensor/sym/narrow", "uint4/tensor/asym"]
)
def test_what_lies_within_the_bounds_is_not_clipped_and_what_lies_beyond_is(text: str) -> None:
    quantizer = static(text)
    low, high = quantizer.bounds()
    step = float(quantizer.scale)
    for value, clipped in ((low, False), (high, False), (low - step, True), (high + step, True)):
        codes, scale, zero = quantizer(torch.tensor([value]))
        back = scale * (codes.float() - (0 if zero is None else zero))
        assert (abs(back.item() - value) > 0.5 * step) is clipped


@pytest.mark.parametrize(
    "text", ["uint8/tensor/asym", "int8/tensor/sym", "int4/tensor/sym/narrow", "int16/tensor/asym"]
)
def test_a_static_quantizer_comes_back_from_its_config_and_state(text: str) -> None:
    quantizer = static(text)
    again = quantizer_from_config(json.loads(json.dumps(quantizer.config())))
    assert isinstance(again, StaticQuantizer)
    again.load_state_dict(quantizer.state_dict())
    assert again.spec == quantizer.spec
    assert again.bounds() == quantizer.bounds()
    x = torch.randn(20)
    assert torch.equal(again(x)[0], quantizer(x)[0])


def test_a_dynamic_quantizer_comes_back_from_its_config() -> None:
    quantizer = DynamicQuantizer(QSpec.parse("int4/token/asym"))
    again = quantizer_from_config(json.loads(json.dumps(quantizer.config())))
    assert isinstance(again, DynamicQuantizer)
    assert again.spec == quantizer.spec
    assert not again.state_dict()


def test_no_quantizer_has_no_config() -> None:
    assert quantizer_from_config(None) is None


def test_quantizers_print_their_spec() -> None:
    assert "uint8/tensor/asym" in repr(static())
    assert "int8/token/sym" in repr(DynamicQuantizer(QSpec.parse("int8/token/sym")))


def test_a_static_scale_keeps_its_dtype() -> None:
    quantizer = static().half()
    assert quantizer.scale.dtype == torch.float32
    assert quantizer.zero_point is not None
    assert quantizer.zero_point.dtype == torch.int32
