"""Write a file or a folder whole, or not at all.

The new content is written under a temporary name beside its target, flushed to the disk, and renamed over the
target in the end: POSIX rename is atomic within one file system. Whatever stops the writer before that (an
error, Ctrl-C, a full disk) leaves the target as it was and no temporary name behind; only a killed process
can leave one, and its name starts with a dot and ends in ``.partial``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fewbit.errors import DiskFull, FewbitError


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = True, needs: int | None = None) -> Iterator[Path]:
    """Give a temporary path to write; when the block ends without an error, it becomes ``path``.

    Args:
        path: The file to appear. Folders above it are made, and removed again if the block fails.
        overwrite: Whether a file already at ``path`` is replaced.
        needs: Its bytes, where they are known, to be told if the disk is full.

    Yields:
        The temporary path, in the folder of ``path``; nothing is there yet.

    Raises:
        FewbitError: ``path`` is a folder, or exists and ``overwrite`` is False, or cannot be written.
    """
    target = _target(path)
    if target.is_dir():
        raise FewbitError(f"{path} is a folder: name a file to write")
    if target.exists() and not overwrite:
        raise FewbitError(f"{path} exists already: choose another name or ask to overwrite it")
    with _staged(target, needs) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder to fill; when the block ends without an error, it becomes ``path``.

    Args:
        path: The folder to appear. Folders above it are made, and removed again if the block fails.
        overwrite: Whether a folder already at ``path`` is replaced with all it holds. It is renamed aside
            first and put back if the exchange fails. An empty folder is always replaced.

    Yields:
        The temporary folder, beside ``path``.

    Raises:
        FewbitError: ``path`` is a file, or holds something and ``overwrite`` is False, or cannot be written.
    """
    target = _target(path)
    if target.exists() and not target.is_dir():
        raise FewbitError(f"{path} is a file: name a folder to write")
    if target.is_dir() and not overwrite and any(target.iterdir()):
        raise FewbitError(f"{path} exists already: choose another name or ask to overwrite it")
    with _staged(target) as temporary:
        temporary.mkdir()
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _exchange(temporary, target)
        _sync(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = True) -> Path:
    """Write ``data`` as the file ``path``, whole or not at all; arguments and errors as in `new_file`."""
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = True) -> Path:
    """Write ``text`` as UTF-8 (line ends as they are) to ``path``, whole or not at all; see `new_file`."""
    return write_bytes(path, text.encode(), overwrite=overwrite)


def check_apart(output: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Refuse an output that would replace what it is made from, by whatever links or spellings both are named.

    Args:
        output: The file or folder that is to appear.
        source: A file or folder that is read; a name of something else (a function, say) is apart from every path.

    Raises:
        FewbitError: Both are one, or ``source`` lies inside of ``output``.
    """
    target, read = _target(output), _target(source)
    with contextlib.suppress(OSError):
        inside = [target.samefile(each) for each in (read, *read.parents) if read.exists() and target.exists()]
        if any(inside):
            what = "is the source itself" if inside[0] else f"holds the source {source}"
            raise FewbitError(f"the output {output} {what}, which stays as it is: choose another output")


def _target(path: str | os.PathLike[str]) -> Path:
    # A link is followed, so that what it points to is replaced and the link stays.
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _staged(target: Path, needs: int | None = None) -> Iterator[Path]:
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.partial")
    made: list[Path] = []
    try:
        _make_parents(target.parent, made)
        yield temporary
    except BaseException as error:
        _remove(temporary)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and is_full(error):
            raise full(error, target, needs) from error
        if isinstance(error, OSError) and _concerns(error, target):
            raise FewbitError(f"{target} cannot be written: {error.strerror or error}") from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or what a user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full(error: OSError, target: Path, needs: int | None = None) -> DiskFull:
    """What to tell of a file for which a disk has no room."""
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    free = f"{_mib(shutil.disk_usage(folder).free)} are free"
    needed = f"{_mib(needs)} are needed for it and " if needs is not None else ""
    return DiskFull(f"{target} cannot be written: {error.strerror} ({needed}{free})")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _concerns(error: OSError, target: Path) -> bool:
    """Whether the error comes from writing ``target``, rather than from reading something else meanwhile."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    failed = Path(error.filename)
    return failed.is_relative_to(target.parent) or target.is_relative_to(failed)


def _make_parents(folder: Path, made: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir()
        made.append(each)


def _exchange(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``, the old folder there aside first and back if that fails."""
    if not target.exists():
        os.replace(temporary, target)
        return
    aside = temporary.with_name(temporary.name.removesuffix(".partial") + ".replaced")
    try:
        os.replace(target, aside)
        os.replace(temporary, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        raise
    finally:
        if target.exists():
            _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it may never have been made
            path.unlink()


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk (folders cannot be opened for it on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
