from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numbers.formats import all_formats, get_format
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor, PerToken
from fewbit.numbers.spec import QSpec, as_spec

granularities = st.one_of(
    st.just(PerTensor()),
    st.just(PerToken()),
    st.builds(PerChannel, st.integers(0, 9)),
    st.builds(PerGroup, st.integers(1, 10**6)),
)


@given(
    st.sampled_from(all_formats()), granularities, st.booleans(), st.booleans(), st.sampled_from(["f32", "f16", "bf16"])
)
def test_the_string_round_trips(fmt, granularity, symmetric, narrow, scale_type) -> None:
    narrow = narrow and fmt.is_integer and fmt.qmin < 0 and fmt.bits > 1
    spec = QSpec(fmt, granularity, symmetric, narrow, scale_type)
    assert QSpec.parse(str(spec)) == spec
    assert str(QSpec.parse(str(spec))) == str(spec)
    assert hash(QSpec.parse(str(spec))) == hash(spec)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("int4/g128/asym", QSpec(get_format("int4"), PerGroup(128), False)),
        ("uint8/tensor/asym", QSpec(get_format("uint8"), PerTensor(), False)),
        ("int8/channel/sym", QSpec(get_format("int8"), PerChannel(0), True)),
        ("int8/channel1/sym/narrow", QSpec(get_format("int8"), PerChannel(1), True, narrow=True)),
        ("int4/g128/asym/f16", QSpec(get_format("int4"), PerGroup(128), False, scale_type="f16")),
        ("int4/g128/sym/narrow/bf16", QSpec(get_format("int4"), PerGroup(128), True, True, "bf16")),
        ("fp8_e4m3/token/sym", QSpec(get_format("fp8_e4m3"), PerToken(), True)),
    ],
)
def test_the_strings_of_the_documentation(text: str, spec: QSpec) -> None:
    assert QSpec.parse(text) == spec
    assert str(spec) == text
    assert as_spec(text) == spec
    assert as_spec(spec) is spec


def test_ranges() -> None:
    assert (QSpec.parse("int8/tensor/sym").qmin, QSpec.parse("int8/tensor/sym").qmax) == (-128, 127)
    assert (QSpec.parse("int8/tensor/sym/narrow").qmin, QSpec.parse("int8/tensor/sym/narrow").qmax) == (
        -127,
        127,
    )
    assert QSpec.parse("int4/g32/sym").bits == 4


@pytest.mark.parametrize(
    "text",
    ["", "int8", "int8/tensor", "int8/tensor/symmetric", "int8/tensor/sym/wide", "int8/tensor/sym/narrow/x",
     "int8/row/sym", "int8/g/sym", "int8/g0/sym", "int8/g-4/sym", "int9/tensor/sym", "int8/channel-1/sym",
     "int8//sym", "/tensor/sym",
     "int8/tensor/sym/f64", "int8/tensor/sym/f16/narrow", "int8/tensor/sym/f16/f16", "int8/tensor/sym/"],
)  # fmt: skip
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(FewbitError):
        QSpec.parse(text)


@pytest.mark.parametrize("text", ["uint8/tensor/asym/narrow", "nf4/g64/sym/narrow", "int1/tensor/sym/narrow"])
def test_narrow_is_for_signed_integers(text: str) -> None:
    with pytest.raises(FewbitError, match="narrow"):
        QSpec.parse(text)


def test_a_spec_is_frozen() -> None:
    spec = QSpec.parse("int8/tensor/sym")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.symmetric = False  # type: ignore[misc]
