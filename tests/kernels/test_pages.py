"""Huge pages change nothing that is seen."""

from __future__ import annotations

import pytest
import torch

from fewbit.kernels import pages


@pytest.mark.parametrize("size", [0, 1, 1000, 2**20, 2**20 + 7, 5 * 2**20])
def test_a_tensor_can_be_filled_and_read(size: int) -> None:
    fresh = torch.empty(size)
    assert pages.on_huge_pages(fresh) is fresh
    fresh.copy_(torch.arange(size))
    assert torch.equal(fresh, torch.arange(size, dtype=torch.float32))


def test_it_asks_for_whole_pages_within_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda begin, size, how: asked.append((begin.value, size.value)))
    fresh = torch.empty(3 * 2**19)  # 6 MB
    pages.on_huge_pages(fresh)
    ((begin, size),) = asked
    assert begin % 2**21 == 0
    assert size % 2**21 == 0
    assert fresh.data_ptr() <= begin
    assert begin + size <= fresh.data_ptr() + 6 * 2**20
    pages.on_huge_pages(torch.empty(4))
    assert len(asked) == 1
