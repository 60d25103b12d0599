"""The machine a benchmark ran on: what it is, which kernels it takes, and what it can do at most.

The limits are measured, not looked up: how fast memory can be read, and how many multiply-adds the vector units (and
AMX's tiles, where there are some) do a second, each with as many threads as torch uses.
"""

from __future__ import annotations

import contextlib
import datetime
import mmap
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbit.kernels import dispatch, onednn, threads

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_READ_BYTES = 256 << 20
_ROUNDS = {"float32": 20_000, "int8": 20_000, "tiles": 2_000}
_PIECES, _TRIES = 16, 7


@dataclass(frozen=True)
class Limits:
    """What the machine does at most, with ``threads`` threads.

    Attributes:
        threads: torch's number of threads while it was measured.
        read: Bytes a second read from memory, of a block of 256 MiB.
        float32: Float operations a second, two a multiply-add.
        int8: int8 operations a second of the vector units.
        tiles: int8 operations a second of AMX's tiles, 0 where there are none.
    """

    threads: int
    read: float
    float32: float
    int8: float
    tiles: float

    @property
    def best_int8(self) -> float:
        """The faster of vectors and tiles."""
        return max(self.int8, self.tiles)


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def footprint() -> int:
    """Bytes of weights to walk through so that no cache holds them: twice the last one's, from 64 to 256 MiB."""
    sizes = (
        [path.read_text(encoding="ascii").strip() for path in _CACHES.glob("index*/size")] if _CACHES.exists() else []
    )
    largest = max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=32 << 20)
    return min(max(2 * largest, 64 << 20), _READ_BYTES)


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions, date."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": dispatch.backend(),
        "fewbit": metadata.version("fewbit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def kernel_choice() -> dict[str, str]:
    """What each family of kernels runs on: an instruction set, a library, or the reference."""
    return {
        "passes of quantizing": dispatch.backend(),
        "layers of 8 bits and fewer": dispatch.backend(),
        "static int8 products": f"oneDNN in torch {torch.__version__}" if onednn.available() else "float64 units",
    }


def info() -> dict[str, Any]:
    """The machine, its processor's features, the instruction sets there are, and what each family of kernels takes."""
    native = dispatch.native()
    return {
        "machine": machine(),
        "features": [] if native is None else native.cpu_features(),
        "instruction sets": [*([] if native is None else native.available_isas()), "reference"],
        "forced": dispatch.forced_isa(),
        "kernels": kernel_choice(),
    }


def measure_limits() -> Limits | None:
    """Measure this machine with torch's number of threads (a second or two); None without compiled kernels."""
    native = dispatch.native()
    if native is None:
        return None
    threads.follow_torch(native)
    block = _block_to_read()
    read = _best(lambda: native.read_memory(block) and float(block.nbytes))
    peaks = {what: _best(lambda what=what: native.peak(what, _PIECES, _ROUNDS[what])) for what in _ROUNDS}  # type: ignore[misc]
    return Limits(threads=torch.get_num_threads(), read=read, **peaks)


def _block_to_read() -> Tensor:
    """``_READ_BYTES`` of int64 on huge pages where the system has them, as packed weights are: a core reads a third
    less past the ends of small ones."""
    memory = mmap.mmap(-1, _READ_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.int64).fill_(1)


def limits_document(limits: Limits | None) -> dict[str, Any] | None:
    """The limits as JSON holds them."""
    return None if limits is None else asdict(limits)


def _best(work: Callable[[], float]) -> float:
    """Amount a second of the fastest of several runs."""
    fastest = 0.0
    for _ in range(_TRIES):
        start = time.perf_counter()
        amount = work()
        fastest = max(fastest, amount / (time.perf_counter() - start))
    return fastest
