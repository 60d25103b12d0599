"""The journal survives kills at any byte, and refuses changed arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewbit.errors import FewbitError
from fewbit.sequential.journal import Journal, differences


def test_records_of_all_processes_are_read(tmp_path: Path) -> None:
    for rank in range(2):
        Journal(tmp_path, rank).add({"part": f"block {rank}", "bytes": rank})
    journal = Journal(tmp_path)
    journal.read()
    assert journal.records.keys() == {"block 0", "block 1"}


def test_a_line_cut_short_does_not_count(tmp_path: Path) -> None:
    Journal(tmp_path).add({"part": "one"})
    Journal(tmp_path).add({"part": "two"})
    path = tmp_path / "done-0.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(tmp_path)
        journal.read()
        assert len(journal.records) == whole[:length].count(b"\n")
        journal.add({"part": "three"})
        again = Journal(tmp_path)
        again.read()
        assert "three" in again.records


def test_the_same_arguments_go_on(tmp_path: Path) -> None:
    arguments = {"recipe": {"scheme": "W4A16"}, "dtype": None, "sizes": (1, 2)}
    Journal(tmp_path).start(arguments)
    Journal(tmp_path).add({"part": "one"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = Journal(tmp_path)
    again.start(arguments)
    again.read()
    assert "one" in again.records
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_changed_arguments_are_named(tmp_path: Path) -> None:
    Journal(tmp_path).start({"recipe": {"scheme": "W4A16"}, "algorithm": "rtn"})
    said = "recipe scheme was W4A16 and is W3A16.*--restart"
    with pytest.raises(FewbitError, match=said):
        Journal(tmp_path).start({"recipe": {"scheme": "W3A16"}, "algorithm": "rtn"})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": [10, 2, "x"], "b": [5, 1, "y"]}, "file a changed (it has as many bytes but was written again)"),
        ({"a": [1234, 2, "x"], "b": [5, 1, "y"]}, "file a changed (it had 10 bytes and has 1,234)"),
        ({"a": [10, 2, "z"], "b": [5, 1, "y"]}, "file a changed (it holds other tensors)"),
        ({"a": [10, 1, "x"], "c": [5, 1, "y"]}, "file b is gone; the source's file c is new"),
        ({"a": "digest", "b": [5, 1, "y"]}, "file a changed"),
    ],
)
def test_a_changed_file_of_the_source_is_named(tmp_path: Path, files: dict[str, object], said: str) -> None:
    Journal(tmp_path).start({"source": {"folder": "here", "a": [10, 1, "x"], "b": [5, 1, "y"]}})
    with pytest.raises(FewbitError) as caught:
        Journal(tmp_path).start({"source": {"folder": "here", **files}})
    assert said in str(caught.value)
    assert "start anew with --restart" in str(caught.value)
    with pytest.raises(FewbitError, match="the source was here and is there"):
        Journal(tmp_path).start({"source": {"folder": "there", **files}})


def test_damaged_arguments_are_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(FewbitError, match=r"run\.json is damaged"):
        Journal(tmp_path).start({})


def test_differences_are_found_at_any_depth() -> None:
    before, now = {"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 1, "c": [2]}, "e": "x"}
    assert differences(before, now) == ["a c was [1] and is [2]", "e was not there and is x"]
    assert not differences(before, before)
