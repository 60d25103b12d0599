"""The machine and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewbit.bench import machine
from fewbit.kernels import dispatch

compiled = pytest.mark.skipif(dispatch.native() is None, reason="the kernels are not compiled")


def test_the_machine_is_described() -> None:
    about = machine.machine()
    assert about["threads"] == torch.get_num_threads()
    assert about["instruction set"] == dispatch.backend()
    assert about["processor"]


def test_info_names_what_runs() -> None:
    info = machine.info()
    assert info["instruction sets"][-1] == "reference"
    assert info["kernels"]["passes of quantizing"] == dispatch.backend()


def test_weights_walk_through_64_to_256_mib() -> None:
    assert 64 << 20 <= machine.footprint() <= 256 << 20


@compiled
def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_ROUNDS", {"float32": 200, "int8": 200, "tiles": 50})
    limits = machine.measure_limits()
    assert limits is not None
    assert limits.read > 1e8
    assert limits.float32 > 1e8
    assert limits.best_int8 >= limits.int8 > 1e7
    document = machine.limits_document(limits)
    assert document is not None
    assert document["threads"] == torch.get_num_threads()


@compiled
def test_a_peak_counts_its_operations() -> None:
    native: Any = dispatch.native()
    assert native.peak("float32", 3, 10) == 3 * native.peak("float32", 1, 10) > 0
    assert native.peak("int8", 1, 20) == 2 * native.peak("int8", 1, 10) > 0
    assert (native.peak("tiles", 1, 10) > 0) == (native.isa() == "amx")
    with pytest.raises(ValueError, match="`what` is 'float64'"):
        native.peak("float64", 1, 1)


@compiled
def test_reading_memory_reads_all_of_it() -> None:
    native: Any = dispatch.native()
    words = torch.arange(200_000)
    assert native.read_memory(words[:199_968]) == int(words[:199_968].sum())
    assert native.read_memory(words[:0]) == 0


def test_without_compiled_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_native", None)
    assert machine.measure_limits() is None
    assert machine.limits_document(None) is None
    assert machine.info()["features"] == []
