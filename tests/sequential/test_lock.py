"""Two runs never write to one output; a lock goes with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fewbit.errors import FewbitError
from fewbit.sequential.lock import NAME, RunLock

HOLD = """
import sys, time
from pathlib import Path
from fewbit.sequential.lock import RunLock
lock = RunLock(Path(sys.argv[1]), Path("out"))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_once_and_goes_when_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        lock = RunLock(folder, tmp_path / "out")
        with pytest.raises(FewbitError, match=r"another run writes to .*out now"):
            lock.take()
        lock.release()
        assert (folder / NAME).exists()
    finally:
        other.kill()
        other.wait()
    lock.take()
    lock.release()
    assert not folder.exists()


def test_clearing_leaves_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "out.partial"
    lock = RunLock(folder, tmp_path / "a" / "out")
    lock.take()
    (folder / "files").mkdir()
    (folder / "files" / "x").write_text("1")
    (folder / "run.json").write_text("{}")
    lock.clear()
    assert [path.name for path in folder.iterdir()] == [NAME]
    (folder / "run.json").write_text("{}")
    lock.release()
    assert (folder / "run.json").exists()
    lock.release()


def test_a_place_where_nothing_can_be_made_is_told_by_the_output_s_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FewbitError, match=r"file/out cannot be written"):
        RunLock(tmp_path / "file" / "out.partial", tmp_path / "file" / "out").take()


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    lock = RunLock(tmp_path / "out.partial", tmp_path / "out")
    lock.take()
    (lock.folder / "run.json").write_text("{}")
    lock.release()
    assert (lock.folder / "run.json").exists()
    lock.take()
    lock.release()
    assert [path.name for path in lock.folder.iterdir()] == ["run.json"]
