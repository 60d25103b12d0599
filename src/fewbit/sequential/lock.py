"""One run at a time writes to an output: a lock on a file in the run's folder, which the system releases whatever ends
the process."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from fewbit.errors import FewbitError

#: The file; what clears a run's folder leaves it.
NAME = "lock"


class RunLock:
    """The lock of a run's folder.

    Args:
        folder: Made where it is not there.
        output: What the run writes, for messages.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self._lock: FileLock | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            FewbitError: Another run holds it, or the folder cannot be made.
        """
        lock = FileLock(self.folder / NAME)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise FewbitError(
                f"another run writes to {self.output} now; wait for it, or choose another output"
            ) from None
        except NotImplementedError:  # a file system without locks: as before there were any
            return
        except OSError as error:
            raise FewbitError(f"{self.output} cannot be written: {error.strerror or error}") from error
        self._lock = lock

    def clear(self) -> None:
        """Remove all else from the folder."""
        for path in self.folder.iterdir():
            if path.name != NAME:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def release(self) -> None:
        """Give the lock back, if it was taken; a folder that holds nothing else goes."""
        if self._lock is None:
            return
        if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= {NAME}:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):  # where releasing leaves the file
            self.folder.rmdir()
        self._lock = None
