"""Interleaved timing: the order of calls, what counts, and the figures."""

from __future__ import annotations

import time

import pytest

from fewbit.evaluate.speed import interleaved_times


def test_functions_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    first, second = interleaved_times([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3, warmup=2)
    assert "".join(calls) == "ab" * 5
    assert first.repeats == second.repeats == 3


def test_a_slow_first_call_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 10.5, 11.0, 11.1, 12.0, 12.3])  # 9 s of warm-up, then 0.5, 0.1, 0.3 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    (timing,) = interleaved_times([lambda: None], repeats=3, warmup=1)
    assert timing.median == pytest.approx(0.3)
    assert timing.minimum == pytest.approx(0.1)
    assert timing.maximum == pytest.approx(0.5)


def test_a_longer_function_takes_longer() -> None:
    short, long = interleaved_times([lambda: None, lambda: time.sleep(0.005)], repeats=3)
    assert long.minimum >= 0.005 > short.median
    assert short.minimum <= short.median <= short.maximum


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_nonsense_is_refused(repeats: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="repeat"):
        interleaved_times([lambda: None], repeats=repeats, warmup=warmup)
