"""The short string of a cache."""

from __future__ import annotations

import pytest

from fewbit.errors import FewbitError
from fewbit.generation.kv_options import KVOptions


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("int8", KVOptions(8)),
        ("INT4", KVOptions(4)),
        ("int4-token", KVOptions(4, "token")),
        ("int8-channel", KVOptions(8, "channel")),
        ("int2-g64-w128", KVOptions(2, None, 64, 128)),
        ("int3-channel-g8-w0", KVOptions(3, "channel", 8, 0)),
    ],
)
def test_strings(text: str, options: KVOptions) -> None:
    assert KVOptions.parse(text) == options


def test_keys_are_per_channel_below_8_bits() -> None:
    assert not KVOptions(8).by_channel
    assert KVOptions(4).by_channel
    assert not KVOptions(4, "token").by_channel
    assert "keys per channel" in KVOptions(4).describe()


@pytest.mark.parametrize("text", ["", "int", "int5", "int16", "fp8", "int4-row", "int4-g12", "int4-g0", "int8-w32-g8"])
def test_strings_that_mean_nothing(text: str) -> None:
    with pytest.raises(FewbitError):
        KVOptions.parse(text)


def test_keys_of_an_unknown_kind() -> None:
    with pytest.raises(FewbitError, match="per channel or per token"):
        KVOptions(4, "row")
