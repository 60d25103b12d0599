"""Timing functions against each other fairly: one call of each in turn, over and over.

Runs of A alone followed by runs of B alone charge a change of the machine's clock, or another process's
burst, to one side only. Interleaved (A B A B ...), it falls on all of them, and the median ignores it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one function, in seconds a call."""

    median: float
    minimum: float
    maximum: float
    repeats: int


def interleaved_times(functions: Sequence[Callable[[], object]], repeats: int = 9, warmup: int = 2) -> list[Timing]:
    """Call every function once a round for `repeats` rounds, after `warmup` rounds that do not count.

    Args:
        functions: What to time; each is called ``warmup + repeats`` times without arguments.
        repeats: Rounds that count, at least 1.
        warmup: Rounds before them, at least 0.

    Returns:
        One `Timing` a function, in their order.

    Raises:
        ValueError: `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"need at least 1 repeat and no negative warm-up, got {repeats} and {warmup}")
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(warmup + repeats):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                taken.append(elapsed)
    return [Timing(statistics.median(taken), min(taken), max(taken), repeats) for taken in seconds]
