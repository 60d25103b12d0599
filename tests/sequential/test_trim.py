"""Freed memory goes back, and other C libraries do no harm."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fewbit.sequential import trim


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_threads_freed_goes_back() -> None:
    def work(_: int) -> None:
        kept = [torch.ones(2**16) for _ in range(400)]  # 100 MB in pieces below any threshold
        del kept

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, 0).result()
        before = resident()
        trim.trim()
        assert resident() <= before


def test_it_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """A C library without malloc_trim."""

    trim._malloc_trim.cache_clear()
    monkeypatch.setattr(trim.ctypes, "CDLL", lambda _: Other())
    trim.trim()
    trim._malloc_trim.cache_clear()
