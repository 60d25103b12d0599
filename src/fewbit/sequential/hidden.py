"""The hidden states between two blocks, one tensor a window: in memory up to a limit, on disk beyond it.

With a folder every state is also written to its own file as it is put, so that an interrupted run finds them again.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fewbit import atomic
from fewbit.errors import FewbitError


class HiddenStates:
    """Tensors by window.

    Args:
        limit: Bytes kept in memory; what exceeds them is read from its file when it is asked for.
        folder: Where the files go; None keeps everything in memory.
    """

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.used = 0
        self._kept: dict[int, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, window: int, state: Tensor) -> None:
        """Store the state of a window."""
        if self.folder is not None:
            with atomic.new_file(self._path(window), needs=state.nbytes) as path:
                path.write_bytes(save({"state": state.contiguous()}))
        size = state.numel() * state.element_size()
        old = self._kept.pop(window, None)
        self.used -= 0 if old is None else old.numel() * old.element_size()
        if self.folder is None or self.limit is None or self.used + size <= self.limit:
            self._kept[window] = state
            self.used += size

    def get(self, window: int) -> Tensor:
        """The state of a window.

        Raises:
            FewbitError: Its file is missing or damaged.
        """
        if window in self._kept:
            return self._kept[window]
        assert self.folder is not None
        try:
            state: Tensor = load(self._path(window).read_bytes())["state"]
            return state
        except (OSError, SafetensorError, KeyError) as error:
            raise FewbitError(
                f"{self._path(window)} is missing or damaged, so the interrupted run cannot go on; start it anew "
                "with --restart"
            ) from error

    def has(self, window: int) -> bool:
        """Whether the window has a state."""
        return window in self._kept or (self.folder is not None and self._path(window).is_file())

    def remove(self) -> None:
        """Forget everything, files included."""
        self._kept.clear()
        self.used = 0
        if self.folder is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder)

    def _path(self, window: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{window:06d}.safetensors"
