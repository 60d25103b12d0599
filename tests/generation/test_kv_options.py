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
        ("int8-channel-g0", KVOptions(8, "channel", group=0)),
        ("int2-g32-b64-w128", KVOptions(2, "channel", 32, 64, 128)),
        ("int3-token-b8-w0", KVOptions(3, "token", block=8, window=0)),
    ],
)
def test_strings(text: str, options: KVOptions) -> None:
    assert KVOptions.parse(text) == options


def test_what_is_told() -> None:
    assert KVOptions(4).describe().startswith("int4: keys per channel and 32 tokens, values per token and 64 channels")
    assert "keys per token and head" in KVOptions(8, "token", group=0).describe()


@pytest.mark.parametrize("text", ["", "int", "int5", "int16", "fp8", "int4-row", "int4-b12", "int4-b0", "int8-w32-b8"])
def test_strings_that_mean_nothing(text: str) -> None:
    with pytest.raises(FewbitError):
        KVOptions.parse(text)


def test_keys_of_an_unknown_kind() -> None:
    with pytest.raises(FewbitError, match="per channel or per token"):
        KVOptions(4, "row")
