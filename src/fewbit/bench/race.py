"""Contenders in turn on one product, and what their times mean.

In each round every contender first rests, so that the threads of the one before have gone to sleep, runs once
untimed, so that its own are awake, and is then timed over a few calls, each on the next copy of the weights.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewbit.bench.case import Case, Contender, Run
from fewbit.bench.machine import Limits

_REST = 0.02  # OpenMP's threads look for work about this long
BASE = "torch FP32"
OWN = "fewbit"


@dataclass(frozen=True)
class Row:
    """One contender on one case.

    Attributes:
        shape: ``M×K×N``.
        weights: ``int4 g128``.
        name: The contender.
        ms: Median milliseconds a call.
        ratio: Times torch FP32.
        against_best: Times the best contender that is not fewbit; for that one and slower ones below or at 1.
        gigabytes: Gigabytes of weights read a second.
        gigaops: Giga-operations a second, two a multiply-add.
        fraction: Of the machine's own limit: the time that reading the weights or the arithmetic takes at least,
            whichever is longer, over the time it took. None where the limits were not measured.
    """

    shape: str
    weights: str
    name: str
    ms: float
    ratio: float
    against_best: float
    gigabytes: float
    gigaops: float
    fraction: float | None

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def race(
    case: Case,
    contenders: list[Contender],
    limits: Limits | None,
    rounds: int = 9,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Median times of the contenders, fastest first.

    Args:
        case: The product.
        contenders: Among them one called ``torch FP32``.
        limits: The machine's, or None.
        rounds: Times that everyone has its turn.
        progress: Called with the rounds done and all rounds.
    """
    medians = in_turn({contender.name: contender.copies for contender in contenders}, rounds, progress=progress)
    return _rows(case, contenders, medians, limits)


def in_turn(
    contenders: dict[str, list[Run]],
    rounds: int,
    calls: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Median seconds a call of each contender, whose copies take turns.

    Each copy runs once before anything is timed, as many prepare their weights then.

    Args:
        contenders: Functions by name; each is called with the next of its copies.
        rounds: Times that everyone has its turn.
        calls: Timed calls of a turn, after one that is not timed.
        progress: Called with the rounds done and all rounds.
    """
    turns = {name: itertools.cycle(copies) for name, copies in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for copies in contenders.values():
            for copy in copies:
                copy()
        for one in range(rounds):
            for name, turn in turns.items():
                time.sleep(_REST)
                taken[name] += [_seconds(next(turn)) for _ in range(1 + calls)][1:]
            if progress is not None:
                progress(one + 1, rounds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rows(case: Case, contenders: list[Contender], medians: dict[str, float], limits: Limits | None) -> list[Row]:
    base = medians[BASE]
    best = min(seconds for name, seconds in medians.items() if not name.startswith(OWN))
    rows = []
    for contender in sorted(contenders, key=lambda c: medians[c.name]):
        seconds = medians[contender.name]
        rows.append(
            Row(
                shape=case.shape,
                weights=case.weights,
                name=contender.name,
                ms=1e3 * seconds,
                ratio=base / seconds,
                against_best=best / seconds,
                gigabytes=1e-9 * contender.nbytes / seconds,
                gigaops=1e-9 * case.operations / seconds,
                fraction=None if limits is None else _least(case, contender, limits) / seconds,
            )
        )
    return rows


def _least(case: Case, contender: Contender, limits: Limits) -> float:
    """Seconds that the product takes at least on this machine."""
    peak = limits.float32 if contender.unit == "float32" else limits.best_int8
    return max(contender.nbytes / limits.read, case.operations / peak)
