"""What a run has measured already, each value with the settings that made it, in one small file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbit.atomic import write_text
from fewbit.errors import FewbitError

Settings = Mapping[str, str | int | float]


class Journal:
    """Values by name. One that is known is not measured again; one made with other settings is refused.

    Args:
        path: The file, written whole after each value; None keeps the values in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {} if path is None or not path.exists() else _read(path)

    def known(self, name: str, settings: Settings) -> Any:
        """The value of ``name``, or None.

        Raises:
            FewbitError: It was made with other settings; the message names them.
        """
        if name not in self.entries:
            return None
        refuse_changed(f"{name} in {self.path}", self.entries[name]["settings"], settings)
        return self.entries[name]["value"]

    def measured(self, name: str, settings: Settings, measure: Callable[[], Any]) -> Any:
        """The value of ``name``, measured and kept unless it is known."""
        value = self.known(name, settings)
        if value is None:
            value = measure()
            self.entries[name] = {"settings": dict(settings), "value": value}
            if self.path is not None:
                write_text(self.path, json.dumps(self.entries, indent=2) + "\n")
        return value


def refuse_changed(what: str, kept: Settings, now: Settings) -> None:
    """Raise FewbitError, naming each difference, unless the settings are equal."""
    changed = [_change(key, kept.get(key), now.get(key)) for key in {**kept, **now} if kept.get(key) != now.get(key)]
    if changed:
        raise FewbitError(
            f"{what} was made with other settings: {', '.join(changed)}; give what was given then, or another --out"
        )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _change(key: str, kept: object, now: object) -> str:
    """Options are told with their values; of what has a fingerprint it is enough that it is another."""
    return f"{key} was {kept} and is {now}" if key.startswith("--") else f"{key}: not the same"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries.values():
            if not isinstance(entry["settings"], dict) or entry["value"] is None:
                raise ValueError("an entry lacks its settings or value")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FewbitError(f"{path} does not hold measured values ({error}); delete it to measure again") from error
    found: dict[str, dict[str, Any]] = entries
    return found
