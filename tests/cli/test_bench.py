"""``fewbit bench``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewbit.bench import machine, passes, peers
from fewbit.bench.peers.torch import contenders as torch_only
from fewbit.kernels import dispatch


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to wait for."""
    monkeypatch.setattr(machine, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_ROUNDS", {"float32": 200, "int8": 200, "tiles": 50})
    monkeypatch.setattr(machine, "footprint", lambda: 1)
    race = passes.race_passes
    monkeypatch.setattr(passes, "race_passes", lambda **_: race(size=64, group=32, rounds=1))


def test_info_is_one_document(command: Any) -> None:
    done = command("bench", "--info", "--json")
    document = done.document
    assert document["machine"]["instruction set"] == dispatch.backend()
    assert set(document) == {"machine", "features", "instruction sets", "forced", "kernels"}


def test_info_for_people(command: Any) -> None:
    done = command("bench", "--info")
    assert done.code == 0
    assert "instruction sets" in done.stdout


@pytest.mark.usefixtures("small")
def test_a_race_is_one_document(command: Any) -> None:
    done = command("bench", "--shape", "2x64x32", "--group", "32", "--no-peers", "--rounds", "1", "--json")
    assert done.code == 0, done.stderr
    document = done.document
    assert set(document) == {"machine", "limits", "products", "passes", "missing"}
    names = {row["name"] for row in document["products"]}
    assert {"torch FP32", "fewbit W4A16-g32", "fewbit W8A8-dynamic"} <= names
    assert all(row["shape"] == "2×64×32" and row["ms"] > 0 for row in document["products"])


@pytest.mark.usefixtures("small")
def test_a_race_for_people(command: Any) -> None:
    before = torch.get_num_threads()
    done = command("bench", "--shape", "1x64x32", "--bits", "8", "--no-peers", "--rounds", "1", "--threads", "1")
    torch.set_num_threads(before)
    assert done.code == 0, done.stderr
    for words in ("int8 channel, 1×64×32", "of the limit", "limits with 1 thread:", "fewbit min-max"):
        assert words in done.stdout


@pytest.mark.usefixtures("small")
def test_the_remedy_for_a_missing_peer_is_shown_whole(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "gather", lambda case, _: (torch_only(case), {"torchao": "pip install 'fewbit[bench]'"}))
    done = command("bench", "--shape", "1x64x32", "--bits", "8", "--rounds", "1")
    assert "pip install 'fewbit[bench]'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "4096"], "--shape takes M, K and N"),
        (["--shape", "0x8x8"], "--shape takes M, K and N"),
        (["--shape", "99999999x8x8"], "is too large: M, K and N go up to 999999"),
        (["--shape", "1x999936X999936"], "is too large"),
        (["--shape", "1x100x8"], "K is no multiple of the group, 128"),
    ],
)
def test_a_shape_that_cannot_be_is_told(command: Any, arguments: list[str], sentence: str) -> None:
    done = command("bench", *arguments)
    assert done.code == 2
    assert sentence in done.stderr


def test_more_threads_than_cores_are_refused(command: Any) -> None:
    done = command("bench", "--threads", "100000", "--no-peers")
    assert done.code == 2
    assert "--threads" in done.stderr
