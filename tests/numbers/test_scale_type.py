"""Scales in 16 bits: every one of them representable, codes computed from the rounded one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.scale_type import fitting_groups, fitting_spec, round_scale
from fewbit.numbers.spec import QSpec

TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("name", TYPES)
def test_every_value_of_the_type_stays_and_lies_nearest_to_its_neighbourhood(name: str) -> None:
    every = torch.arange(1, 2**15, dtype=torch.int32).to(torch.int16).view(TYPES[name]).float()
    every = every[torch.isfinite(every) & (every >= (2**-24 if name == "f16" else 2**-126))]
    spec = QSpec.parse(f"int4/g32/sym/{name}")
    assert torch.equal(round_scale(every, spec), every)
    between = (every[1:].double() + every[:-1].double()) / 2
    rounded = round_scale((between * (1 - 1e-6)).float(), spec)
    assert ((rounded == every[:-1]) | (rounded == every[1:])).all()


def test_float32_scales_are_left_alone_and_small_ones_take_the_smallest_step() -> None:
    tiny = torch.tensor([1e-30, 1e-9])
    assert round_scale(tiny, QSpec.parse("int4/g32/sym")) is tiny
    assert torch.equal(round_scale(tiny, QSpec.parse("int4/g32/sym/f16")), torch.tensor([2.0**-24] * 2))
    assert (round_scale(tiny, QSpec.parse("int4/g32/sym/bf16")) / tiny - 1).abs().max() < 2**-8


def test_what_is_too_large_is_told_with_the_remedy() -> None:
    with pytest.raises(FewbitError, match=r"w has a scale of 7e\+04.*leave /f16 out"):
        round_scale(torch.tensor([7e4]), QSpec.parse("int4/g32/sym/f16"), "w")


@given(
    st.sampled_from(["int4/g8/sym", "int3/g8/asym", "nf4/g8/sym"]), st.sampled_from(["f16", "bf16"]), st.integers(0, 99)
)
def test_codes_are_nearest_on_the_rounded_grid(text: str, scale_type: str, seed: int) -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    spec = QSpec.parse(f"{text}/{scale_type}")
    blocks = spec.granularity.to_blocks(x)
    scale, zero = (
        None if t is None else t.reshape(4, 2)
        for t in affine.scale_and_zero_point(blocks.amin(1), blocks.amax(1), spec)
    )
    t = affine.quantize(x, spec, scale=scale, zero_point=zero)
    assert torch.equal(t.scale, t.scale.to(TYPES[scale_type]).float())
    wide = QSpec.parse(text)
    again = affine.quantize(x, wide, scale=t.scale, zero_point=zero)
    assert torch.equal(t.codes, again.codes)
    unrounded = affine.quantize(x, spec, scale=scale * (1 + 1e-5), zero_point=zero)
    assert torch.equal(unrounded.scale, unrounded.scale.to(TYPES[scale_type]).float())
    assert torch.equal(affine.fake_quantize(x, spec, scale=scale, zero_point=zero), t.dequantize())


@pytest.mark.parametrize(
    ("size", "wanted"), [(1.0, "f16"), (1e-2, "f16"), (1e-5, "f32"), (1e9, "f32"), (0.0, "f16"), (1e5, "f16")]
)
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_weights_that_16_bits_do_not_fit_get_32(size: float, wanted: str, symmetry: str) -> None:
    spec = QSpec.parse(f"int4/g8/{symmetry}/f16")
    assert fitting_spec(torch.linspace(-1, 1, 16).reshape(2, 8) * size, spec).scale_type == wanted
    assert fitting_spec(torch.zeros(0, 8), spec) is spec


@pytest.mark.parametrize(("size", "columns", "wanted"), [(128, 64, 64), (128, 100, 128), (48, 64, 48), (10**6, 33, 64)])
def test_groups_are_no_wider_than_a_row(size: int, columns: int, wanted: int) -> None:
    spec = QSpec.parse(f"int4/g{size}/sym")
    assert fitting_spec(torch.ones(2, columns), spec) == QSpec.parse(f"int4/g{wanted}/sym")
    channel = QSpec.parse("int4/channel/sym")
    assert fitting_groups(channel, columns) is channel
