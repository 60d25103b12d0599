"""Freed memory goes back, and other C libraries do no harm."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fewbit.sequential import trim


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"
)
def test_what_threads_freed_goes_back() -> None:
    def work(_: int) -> torch.Tensor:
        freed = [torch.ones(2**12) for _ in range(6400)]  # 100 MB in pieces below any threshold
        last = torch.ones(2**12)  # keeps the top of the arena, so that glibc gives nothing back by itself
        del freed
        return last

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(work, 0).result()
        before = resident()
        trim.trim()
        assert resident() < before - 50e6
        assert bool(last.all())


def test_it_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """A C library without malloc_trim."""

    trim._malloc_trim.cache_clear()
    asked = []
    monkeypatch.setattr(trim.ctypes, "CDLL", lambda name: asked.append(name) or Other())
    trim.trim()
    assert asked == [None]
    trim._malloc_trim.cache_clear()
