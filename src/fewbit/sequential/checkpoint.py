"""The tensors of a Hugging Face folder, read one at a time from ``.safetensors`` files.

A tensor is read into memory of its own and nothing is mapped, so that resident memory is what is in use. Headers are
checked when the folder is opened: a file that is cut off or damaged is told before any work is done. The format
(https://huggingface.co/docs/safetensors): eight bytes length of the header, little endian; the header, JSON of name to
``{"dtype", "shape", "data_offsets": [start, stop]}`` counted from its end; the values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_LONGEST_HEADER = 100 * 2**20
_PIECE = 1 << 30  # one read call takes at most 2 GiB

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, bytes from ``start``, type and shape."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Checkpoint:
    """The tensors of a folder, by name.

    Args:
        folder: With ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names.

    Raises:
        FewbitError: There are no such files, or one is missing, cut off or damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self.entries: dict[str, Entry] = {}
        self._headers: dict[str, str] = {}
        for file in self.files:
            entries, digest = _header(file)
            self._headers[file.name] = digest
            for name, entry in entries.items():
                if name in self.entries:
                    raise FewbitError(f"{file} and {self.entries[name].file.name} both hold the tensor {name}")
                self.entries[name] = entry
        self._check_index()

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def read(self, name: str) -> Tensor:
        """A tensor in its own type, on the CPU.

        Raises:
            FewbitError: There is none of that name, or its bytes cannot be read.
        """
        if name not in self.entries:
            raise FewbitError(f"{self.folder} holds no tensor {name}")
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel() == 0:
            return tensor
        flat = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with entry.file.open("rb", buffering=0) as file:
                file.seek(entry.start)
                done = 0
                while done < len(flat):
                    count = file.readinto(flat[done : done + _PIECE])
                    if not count:
                        raise FewbitError(f"{entry.file} is damaged: it ends within the tensor {name}")
                    done += count
        except OSError as error:
            raise FewbitError(f"{entry.file} cannot be read: {error.strerror or error}") from error
        return tensor

    def fingerprint(self) -> dict[str, list[Any]]:
        """For each file what tells whether it changed: bytes, time of its last change in ns, digest of its header."""
        told = {}
        for file in self.files:
            state = file.stat()
            told[file.name] = [state.st_size, state.st_mtime_ns, self._headers[file.name]]
        return told

    def _check_index(self) -> None:
        if not (self.folder / INDEX).is_file() or (self.folder / _WHOLE) in self.files:
            return
        for name, file in _index(self.folder).items():
            if name not in self.entries or self.entries[name].file.name != file:
                raise FewbitError(f"{self.folder / file} lacks the tensor {name}, which {INDEX} says it holds")


def _files(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / INDEX).is_file():
        names = sorted(set(_index(folder).values()))
        for name in names:
            if not (folder / name).is_file():
                raise FewbitError(f"{folder / name} is missing, which {INDEX} names; fetch the folder again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FewbitError(f"{folder} holds no .safetensors weights, and pickled ones (.bin) are not read")
    return files


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FewbitError(f"{path} is damaged: it is no index of shards") from error
    for file in plain.values():
        if Path(file).name != file:
            raise FewbitError(f"{path} names the file {file!r}, which is not in its folder")
    return plain


def _header(file: Path) -> tuple[dict[str, Entry], str]:
    """The tensors of a file, and the digest of its header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise FewbitError(f"{file} is damaged: it is cut off or no safetensors file")
            raw = opened.read(length)
    except OSError as error:
        raise FewbitError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        described = json.loads(raw)
        described.pop("__metadata__", None)
        entries = {name: _entry(file, 8 + length, value) for name, value in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FewbitError(f"{file} is damaged: its header is not that of a safetensors file") from error
    for name, entry in entries.items():
        if entry.start + entry.nbytes > size:
            raise FewbitError(f"{file} is damaged: it ends before the tensor {name} does ({size} bytes)")
    _check_overlap(file, entries)
    return entries, hashlib.sha256(raw).hexdigest()


def _entry(file: Path, base: int, value: dict[str, Any]) -> Entry:
    start, stop = value["data_offsets"]
    shape = tuple(value["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError("a number that is none")
    entry = Entry(file, base + start, _DTYPES[value["dtype"]], shape)
    if stop - start != entry.nbytes:
        raise ValueError("a shape that does not fit its bytes")
    return entry


def _check_overlap(file: Path, entries: dict[str, Entry]) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise FewbitError(f"{file} is damaged: the tensor {name} lies on top of another")
        end = entry.start + entry.nbytes
