"""How many threads the compiled kernels use: as many as torch does.

The kernels have a pool of their own (``csrc/threads.h``), whose helpers sleep when there is nothing to do, so that
torch's OpenMP threads and they do not compete. ``torch.set_num_threads`` governs both.
"""

from __future__ import annotations

from types import ModuleType

import torch

_told: int | None = None


def follow_torch(native: ModuleType) -> None:
    """Allow the kernels as many threads as torch has now; call it before a kernel (0.1 us when nothing changed)."""
    global _told
    wanted = torch.get_num_threads()
    if wanted != _told:
        native.set_threads(wanted)
        _told = wanted
