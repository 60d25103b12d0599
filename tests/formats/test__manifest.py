"""The description's file: one way to write it, and no damage goes unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.formats import _manifest

TYPES: dict[str, Any] = {"format": str, "format_version": int, "more": (dict, list, str, int, float, type(None))}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def written(folder: Path, more: Any) -> Path:
    path = folder / _manifest.NAME
    path.write_bytes(_manifest.to_bytes({"format": "fewbit", "format_version": 1, "more": more}))
    return path


@given(more=st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_written_is_read_back(more: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.mktemp("m"), more)
    assert _manifest.read(path, TYPES) == {"format": "fewbit", "format_version": 1, "more": more}
    assert path.read_bytes().isascii()
    assert json.loads(path.read_bytes())["more"] == more


def test_the_order_of_members_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, {"b": 1, "a": 2})
    assert list(_manifest.read(path, TYPES)["more"]) == ["b", "a"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": [1, 2.5, None, True, "\u00e9"], "b": -1})
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(8 * len(data)):
            place, bit = divmod(position, 8)
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << bit]), place)
            with pytest.raises(FewbitError, match=_manifest.NAME):
                _manifest.read(path, TYPES)
            os.pwrite(file.fileno(), data[place : place + 1], place)


def test_every_truncation_and_every_added_byte_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": 1})
    data = path.read_bytes()
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\n", data + b" ", b" " + data]:
        path.write_bytes(damaged)
        with pytest.raises(FewbitError, match=_manifest.NAME):
            _manifest.read(path, TYPES)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"fewbit"', "{", "{}", "\x00\x01", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN"],
)
def test_garbage_is_refused_with_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / _manifest.NAME
    path.write_text(text)
    with pytest.raises(FewbitError) as caught:
        _manifest.read(path, TYPES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_nesting_behind_a_good_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / _manifest.NAME
    for depth in (900, 5_000, 200_000):
        deep = "[" * depth + "]" * depth
        path.write_text('{"format": "fewbit", "format_version": 1, "more": ' + deep + ', "digest": "0"}')
        with pytest.raises(FewbitError, match=_manifest.NAME):
            _manifest.read(path, TYPES)


def test_a_repeated_member_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": 1})
    path.write_bytes(path.read_bytes().replace(b'{"a": 1}', b'{"a": 2, "a": 1}'))
    with pytest.raises(FewbitError, match="does not match its own digest"):
        _manifest.read(path, TYPES)


@pytest.mark.parametrize("version", [3, 4, 10**6])
def test_a_newer_version_says_to_upgrade_whatever_else_is_in_it(tmp_path: Path, version: int) -> None:
    path = tmp_path / _manifest.NAME
    path.write_text(json.dumps({"format": "fewbit", "format_version": version, "surprise": []}))
    with pytest.raises(FewbitError, match=f"written by a newer fewbit .*{version}.*upgrade"):
        _manifest.read(path, TYPES)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_version_that_is_none_is_damage(tmp_path: Path, version: Any) -> None:
    path = tmp_path / _manifest.NAME
    path.write_bytes(_manifest.to_bytes({"format": "fewbit", "format_version": version, "more": {}}))
    with pytest.raises(FewbitError, match="no format version"):
        _manifest.read(path, TYPES)


def test_members_are_those_expected_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / _manifest.NAME
    good: dict[str, Any] = {"format": "fewbit", "format_version": 1, "more": {}}
    for bad, what in [
        ({**good, "extra": 1}, "unexpected member 'extra'"),
        ({"format": "fewbit", "format_version": 1}, "no member 'more'"),
        ({**good, "more": True}, "'more' of a wrong type"),
        ({**good, "format": "other"}, "does not say so"),
    ]:
        path.write_bytes(_manifest.to_bytes(bad))
        with pytest.raises(FewbitError, match=what):
            _manifest.read(path, TYPES)


def test_a_file_too_large_to_be_ours_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, {"a": "x" * 1000})
    monkeypatch.setattr(_manifest, "_MAX_BYTES", 500)
    with pytest.raises(FewbitError, match="larger than any"):
        _manifest.read(path, TYPES)
    with pytest.raises(FewbitError, match="more than fewbit reads back"):
        written(tmp_path, {"a": "x" * 1000})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FewbitError, match=r"fewbit.json cannot be read"):
        _manifest.read(tmp_path / _manifest.NAME, TYPES)
