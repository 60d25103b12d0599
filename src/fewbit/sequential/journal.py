"""What a run has finished, so that a killed one goes on where it was.

``run.json`` holds the run's arguments; ``done-RANK.jsonl`` gets one line for every finished part, flushed to the disk
after the part's files are. A line that a kill cut short does not count.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fewbit import atomic
from fewbit.errors import FewbitError

_ARGUMENTS = "run.json"


class Journal:
    """The journal of a run in its folder.

    Args:
        folder: Of the run; other processes may write to it too.
        rank: This process's number.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.records: dict[str, dict[str, Any]] = {}

    def start(self, arguments: dict[str, Any]) -> None:
        """Write down the arguments, or compare them with those of the run that was interrupted.

        Raises:
            FewbitError: Something differs; the message says what.
        """
        path = self.folder / _ARGUMENTS
        if not path.is_file():
            atomic.write_text(path, json.dumps(arguments, indent=1, sort_keys=True))
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FewbitError(f"{path} is damaged; start the run anew with --restart") from error
        now = json.loads(json.dumps(arguments))
        files = changed_files(*(_files(each) for each in (before, now)))
        if files and _folder(before) == _folder(now):
            raise FewbitError(
                f"{self.folder} holds an interrupted run, and since then {'; '.join(files[:4])}. Put back what was "
                "there (with its time, as cp -p does) to go on, or start anew with --restart"
            )
        changes = [f"the source was {_folder(before)} and is {_folder(now)}"] if files else differences(before, now)
        if changes:
            raise FewbitError(
                f"{self.folder} holds an interrupted run with other arguments: {'; '.join(changes[:4])}. Go on with "
                "the same ones, or start anew with --restart"
            )

    def read(self) -> None:
        """Take in what all processes have finished."""
        for path in sorted(self.folder.glob("done-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    self.records[str(record["part"])] = record
                except (ValueError, KeyError, TypeError):
                    continue  # cut short by a kill

    def add(self, record: dict[str, Any]) -> None:
        """A part is finished; its files are on the disk."""
        self.records[str(record["part"])] = record
        path = self.folder / f"done-{self.rank}.jsonl"
        with path.open("ab") as file:
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def changed_files(before: Any, now: Any) -> list[str]:
    """What differs between the files of a source, which are told as bytes, time of the last change and a digest of the
    header, or as a digest."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            found.append(f"the source's file {name} {'is new' if old is None else 'is gone'}")
        elif old != new and isinstance(old, list) and isinstance(new, list) and len(old) == len(new) == 3:
            size = f"it had {old[0]:,} bytes and has {new[0]:,}" if old[0] != new[0] else ""
            header = "it holds other tensors" if old[2] != new[2] else "it has as many bytes but was written again"
            found.append(f"the source's file {name} changed ({size or header})")
        elif old != new:
            found.append(f"the source's file {name} changed")
    return found


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, one short phrase each."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += differences(before.get(key), now.get(key), f"{name} {key}".strip())
        return found
    if before == now:
        return []
    return [f"{name} was {_short(before)} and is {_short(now)}"]


def _files(arguments: Any) -> dict[str, Any]:
    source = arguments.get("source") if isinstance(arguments, dict) else None
    return {name: value for name, value in source.items() if name != "folder"} if isinstance(source, dict) else {}


def _folder(arguments: Any) -> Any:
    source = arguments.get("source") if isinstance(arguments, dict) else None
    return source.get("folder") if isinstance(source, dict) else None


def _short(value: Any) -> str:
    text = "not there" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
