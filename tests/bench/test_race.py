"""What the times of a race mean."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fewbit.bench.case import Case, Contender
from fewbit.bench.machine import Limits
from fewbit.bench.race import in_turn, race

CASE = Case(2, 64, 32, 4, 32, footprint=1)


def test_everyone_runs_as_often_and_copies_take_turns() -> None:
    called: list[str] = []

    def run(name: str) -> object:
        return lambda: called.append(name)

    medians = in_turn({"a": [run("a0"), run("a1")], "b": [run("b0")]}, rounds=3, calls=2)  # type: ignore[list-item]
    assert set(medians) == {"a", "b"}
    assert called.count("b0") == 10
    assert called[:3] == ["a0", "a1", "b0"]  # untimed
    assert [name for name in called if name[0] == "a"] == ["a0", "a1"] * 5 + ["a0"]


def test_what_a_copy_prepares_at_its_first_call_is_not_timed() -> None:
    def lazy() -> Callable[[], object]:
        ready: list[bool] = []
        return lambda: None if ready else (time.sleep(0.02), ready.append(True))

    medians = in_turn({"lazy": [lazy() for _ in range(12)]}, rounds=1, calls=8)
    assert medians["lazy"] < 0.01


def test_rows_hold_ratios_rates_and_the_share_of_the_limit() -> None:
    contenders = [
        Contender("fewbit fast", [lambda: time.sleep(0.002)], 10_000_000),
        Contender("torch FP32", [lambda: time.sleep(0.008)], 40_000_000, "float32"),
        Contender("peer", [lambda: time.sleep(0.004)], 20_000_000),
    ]
    limits = Limits(threads=1, read=1e10, float32=1e9, int8=1e10, tiles=0.0)
    rows = race(CASE, contenders, limits, rounds=3)
    assert [row.name for row in rows] == ["fewbit fast", "peer", "torch FP32"]
    fast, peer, base = rows
    assert base.ratio == pytest.approx(1.0)
    assert 2.5 < fast.ratio < 5
    assert peer.against_best == pytest.approx(1.0)
    assert 1.5 < fast.against_best < 2.5
    assert fast.gigabytes == pytest.approx(10 / fast.ms, rel=1e-6)
    assert fast.gigaops == pytest.approx(CASE.operations * 1e-6 / fast.ms, rel=1e-6)
    assert fast.fraction == pytest.approx(1.0 / fast.ms, rel=1e-6)  # 10 MB at 10 GB/s take 1 ms
    assert fast.document()["weights"] == "int4 g32"


def test_without_limits_there_is_no_share() -> None:
    rows = race(CASE, [Contender("torch FP32", [lambda: None], 1)], None, rounds=1)
    assert rows[0].fraction is None
