"""Pictures from a folder or a .zip, in the order of their names, prepared by :mod:`.preparation`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from fewbit.errors import FewbitError, require
from fewbit.sources.batches import Batches, spread
from fewbit.sources.preparation import ImageOptions, prepare, resolve

SUFFIXES = (".jpg", ".jpeg", ".png")
# RuntimeError: an encrypted archive; NotImplementedError, one of its kind: an unknown compression
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
_FILE_LIMIT = 256 * 2**20  # no picture is larger; an archive may lie about what it unpacks to


class PictureFiles(Protocol):
    """Where pictures lie: their names, sorted, and their bytes."""

    names: list[str]

    def read(self, name: str) -> bytes:
        """The bytes of one file."""


def load_images(
    path: Path, model: nn.Module | None, *, batch_size: int, limit: int | None, options: ImageOptions
) -> Batches:
    """Batches of the pictures in a folder or an archive, in the order of their names.

    Returns:
        Float32 tensors [N, channels, size, size].

    Raises:
        FewbitError: There are no pictures, the archive is damaged, or a picture cannot be decoded (told when
            its batch is made).
        MissingExtraError: Pillow is not installed.
    """
    require("PIL.Image", extra="images")
    files: PictureFiles = _Archive(path) if path.is_file() else _Folder(path)
    if not files.names:
        raise FewbitError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    preparation = resolve(options, model)
    names = [files.names[i] for i in spread(len(files.names), limit)]

    def make(start: int, stop: int) -> torch.Tensor:
        return torch.stack([prepare(files.read(n), preparation, f"{path}: {n}") for n in names[start:stop]])

    return Batches(len(names), batch_size, make, describe=f"{len(names)} pictures of {path.name}")


def none_in(folder: Path) -> bool:
    """Whether a folder holds no picture."""
    return not _Folder(folder).names


class _Folder:
    """Pictures below a folder, hidden ones left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        self.names = sorted(name for name in found if _is_picture(name))

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise FewbitError(f"{self.path / name} cannot be read: {error.strerror}") from error


class _Archive:
    """Pictures inside a .zip, read where they lie; nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as archive:
            self.names = sorted(name for name in archive.namelist() if _is_picture(name))

    def read(self, name: str) -> bytes:
        with self._open() as archive:
            if archive.getinfo(name).file_size > _FILE_LIMIT:
                raise FewbitError(f"{self.path}: {name} unpacks to more than {_FILE_LIMIT >> 20} MiB")
            return archive.read(name)

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except _DAMAGED as error:
            raise FewbitError(f"{self.path} cannot be read as a .zip: {error}") from error


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(p.startswith((".", "__MACOSX")) for p in parts)
