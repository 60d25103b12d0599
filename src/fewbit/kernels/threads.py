"""How many threads the compiled kernels use: as many as torch does.

The kernels have a pool of their own (``csrc/threads.h``), whose helpers sleep when there is nothing to do, so that
torch's OpenMP threads and they do not compete. ``torch.set_num_threads`` governs both. Products of several rows run on
torch's OpenMP threads themselves: those spin for milliseconds after each of torch's own loops, and helpers beside them
would get half of a core.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType

import torch

_told: int | None = None


def _team() -> int:
    """The address of the function that runs something on torch's OpenMP threads, 0 where torch has none."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                entry = ctypes.CDLL(str(path)).GOMP_parallel  # of the runtime that this library is linked with
            except (OSError, AttributeError):
                return 0
            return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


def follow_torch(native: ModuleType) -> None:
    """Allow the kernels as many threads as torch has now; call it before a kernel (0.1 us when nothing changed)."""
    global _told
    wanted = torch.get_num_threads()
    if wanted != _told:
        if _told is None:
            native.set_team(_team())
        native.set_threads(wanted)
        _told = wanted
