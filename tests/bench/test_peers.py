"""Every peer that is installed computes the product it is timed on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fewbit.bench import peers
from fewbit.bench.case import Case, Contender, PeerUnavailable


def value(result: Any) -> torch.Tensor:
    """The output of a contender, whatever it comes in."""
    if isinstance(result, torch.Tensor):
        return result.float()
    if isinstance(result, list):
        return torch.from_numpy(np.asarray(result[0]))
    return torch.from_numpy(np.array(next(iter(result.values()))))


def contenders_of(name: str, case: Case) -> list[Contender]:
    module = pytest.importorskip(f"fewbit.bench.peers.{name}")
    try:
        found: list[Contender] = module.contenders(case)
    except PeerUnavailable as reason:
        pytest.skip(str(reason))
    return found


@pytest.mark.parametrize("name", peers.names())
def test_a_peer_computes_the_product(name: str, case: Case) -> None:
    wanted = case.x @ case.weight.t()
    found = contenders_of(name, case)
    assert found
    for contender in found:
        assert len(contender.copies) >= 2
        assert contender.nbytes > 0
        for run in contender.copies[:2]:
            with torch.inference_mode():
                error = value(run()) - wanted
            floor = 15 if case.bits == 4 and contender.nbytes < 2 * case.k * case.n else 30
            decibels = 10 * torch.log10(wanted.square().sum() / error.square().sum()).item()
            assert decibels > floor, f"{contender.name}: {decibels:.1f} dB"


def test_who_cannot_take_part_is_told_why(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    def broken(_: Case) -> list[Contender]:
        raise RuntimeError("no such kernel\nat all")

    def absent(_: Case) -> list[Contender]:
        raise PeerUnavailable("not installed")

    monkeypatch.setattr("fewbit.bench.peers.openvino.contenders", broken)
    monkeypatch.setattr("fewbit.bench.peers.onnxruntime.contenders", absent)
    found, missing = peers.gather(case, ["openvino", "onnxruntime"])
    assert missing == {"openvino": "failed: RuntimeError: no such kernel", "onnxruntime": "not installed"}
    assert "torch FP32" in [contender.name for contender in found]


def test_only_torch_is_asked_where_no_peers_are_wanted(case: Case) -> None:
    found, missing = peers.gather(case, [])
    assert not missing
    assert all(contender.name.startswith("torch") for contender in found)
