"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fewbit import atomic
from fewbit.errors import DiskFull, FewbitError


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def half_a_file(path: Path, failure: BaseException) -> None:
    with atomic.new_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure


def half_a_folder(path: Path, failure: BaseException) -> None:
    with atomic.new_folder(path, overwrite=True) as temporary:
        (temporary / "x").write_bytes(b"half")
        raise failure


@pytest.fixture(params=[OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("other")])
def failure(request: pytest.FixtureRequest) -> BaseException:
    return request.param


def expected(failure: BaseException) -> type[BaseException]:
    return FewbitError if isinstance(failure, OSError) else type(failure)


def test_a_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a" / "b" / "x.txt", "één\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == "één\n".encode()
    assert names(tmp_path / "a" / "b") == ["x.txt"]


def test_the_target_does_not_exist_before_the_end(tmp_path: Path) -> None:
    with atomic.new_file(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        assert not (tmp_path / "x").exists()
        assert temporary.parent == tmp_path
    assert (tmp_path / "x").read_bytes() == b"half"
    with atomic.new_folder(tmp_path / "y") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_bytes(b"1")
        assert not (tmp_path / "y").exists()
    assert (tmp_path / "y" / "inner" / "file").read_bytes() == b"1"
    assert names(tmp_path) == ["x", "y"]


def test_a_failed_file_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for target in ("old", "new", "deep/er/new"):
        with pytest.raises(expected(failure)) as caught:
            half_a_file(tmp_path / target, failure)
        if isinstance(failure, OSError):
            assert str(tmp_path / target) in str(caught.value)
            assert "No space left" in str(caught.value)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_failed_folder_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_bytes(b"old")
    for target in ("old", "new", "deep/er/new"):
        with pytest.raises(expected(failure)):
            half_a_folder(tmp_path / target, failure)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old" / "x").read_bytes() == b"old"


@pytest.mark.parametrize("broken_call", [1, 2])
def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, failure: BaseException, broken_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_bytes(b"old")
    rename, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == broken_call:
            raise failure
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(expected(failure)), atomic.new_folder(tmp_path / "old", overwrite=True) as temporary:
        (temporary / "x").write_bytes(b"new")
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old" / "x").read_bytes() == b"old"


def test_an_error_from_reading_elsewhere_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError), atomic.new_file(tmp_path / "out" / "x"):
        (tmp_path / "input" / "missing").read_bytes()


def test_replacing_a_folder_replaces_all_it_held(tmp_path: Path) -> None:
    for content in ("a", "b"):
        with atomic.new_folder(tmp_path / "out", overwrite=True) as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path / "out") == ["b"]
    assert names(tmp_path) == ["out"]


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("kept")
    with pytest.raises(FewbitError, match="file exists already"), atomic.new_file(tmp_path / "file", overwrite=False):
        pytest.fail("the block ran")
    with pytest.raises(FewbitError, match="folder exists already"), atomic.new_folder(tmp_path / "folder"):
        pytest.fail("the block ran")
    with pytest.raises(FewbitError, match="is a folder"), atomic.new_file(tmp_path / "folder"):
        pytest.fail("the block ran")
    with pytest.raises(FewbitError, match="is a file"), atomic.new_folder(tmp_path / "file", overwrite=True):
        pytest.fail("the block ran")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "x").read_text() == "kept"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic.new_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("1")
    assert names(tmp_path / "out") == ["x"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic.new_folder(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "x").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "1"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FewbitError, match="cannot be written"), atomic.new_file(tmp_path / "file" / "x") as temporary:
        temporary.write_text("")


def test_the_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b))[1])
    with atomic.new_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("1")
        (temporary / "y").write_text("2")
    assert order == ["sync"] * 3 + ["rename", "sync"]  # two files, their folder; the folder above


def test_an_output_is_apart_from_what_is_read_by_every_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    source = folder / "model.onnx"
    source.write_text("float")
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "hard")
    (tmp_path / "way").symlink_to(folder)
    one = ["folder/model.onnx", "other/../folder/model.onnx", "link", "hard", "way/model.onnx", str(source)]
    for output in one:
        for read in one:
            with pytest.raises(FewbitError, match="is the source itself"):
                atomic.check_apart(output, read)
    for output in ("folder", "way", ".", tmp_path):
        with pytest.raises(FewbitError, match="holds the source"):
            atomic.check_apart(output, source)
    for output in ("other", "folder/new.onnx", "new/model.onnx", "other/model.onnx"):
        atomic.check_apart(output, source)
    atomic.check_apart("other", "package.module:factory")
    atomic.check_apart("folder/int8", "folder")


def test_a_full_disk_is_told_with_what_is_needed_and_free(tmp_path: Path) -> None:
    for needs, said in (
        (3 * 2**20, r"3\.0 MiB are needed for it and .* MiB are free"),
        (None, r"\([0-9,.]* MiB are free"),
    ):
        with (
            pytest.raises(DiskFull, match=rf"made/x cannot be written: No space left on device.*{said}"),
            atomic.new_file(tmp_path / "made" / "x", needs=needs),
        ):
            raise OSError(28, "No space left on device")
    assert not names(tmp_path)
