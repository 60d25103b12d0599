"""States stay in memory up to a limit and come back from disk beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.sequential.hidden import HiddenStates


@pytest.mark.parametrize("limit", [0, 100, 10**6, None])
def test_what_is_put_comes_back(tmp_path: Path, limit: int | None) -> None:
    states = HiddenStates(limit, tmp_path / "states")
    tensors = [torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    for window, tensor in enumerate(tensors):
        states.put(window, tensor)
    assert all(torch.equal(states.get(window), tensor) for window, tensor in enumerate(tensors))
    assert states.used <= (limit if limit is not None else 10**6)
    assert len(list((tmp_path / "states").iterdir())) == 5


def test_without_a_folder_everything_is_in_memory() -> None:
    states = HiddenStates(0)
    states.put(0, torch.ones(4))
    states.put(0, torch.zeros(4))
    assert (states.used, states.get(0).sum()) == (16, 0)


def test_another_run_finds_them(tmp_path: Path) -> None:
    HiddenStates(0, tmp_path).put(3, torch.arange(3.0))
    assert torch.equal(HiddenStates(0, tmp_path).get(3), torch.arange(3.0))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    states = HiddenStates(0, tmp_path)
    states.put(0, torch.ones(2))
    (tmp_path / "000000.safetensors").write_bytes(b"no")
    with pytest.raises(FewbitError, match=r"000000\.safetensors is missing or damaged.*--restart"):
        states.get(0)


def test_removed_states_are_gone(tmp_path: Path) -> None:
    states = HiddenStates(None, tmp_path / "states")
    states.put(0, torch.ones(2))
    states.remove()
    states.remove()
    assert not (tmp_path / "states").exists()
