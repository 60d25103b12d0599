"""What the time of an eager decoder block is made of: each part timed where it runs, between the other parts."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
METHODS = {"norm": "norms", "turned": "rotary"}
PARTS = ("linear layers", "attention", "norms", "rotary", "the rest")
ABOUT = (
    "What a call is made of, milliseconds by the wall, each part timed where it runs (a microsecond of it is the "
    "timing's): seven linear layers with the modules' calls, attention, norms, rotary positions; the rest are "
    "activation function, product, sums, copies into other shapes, and the block's own Python."
)


def parts(modules: Sequence[nn.Module], runs: Sequence[Callable[[], object]], calls: int) -> dict[str, float]:
    """Median seconds of each of ``PARTS`` and of a whole call, ``runs`` (those of ``modules``) taking turns."""
    taken: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            taken[part] += time.perf_counter() - start
            return result

        return timing

    for module in modules:
        for name in LINEAR:
            setattr(module, name, _Timed(timed("linear layers", getattr(module, name))))
        for name, part in METHODS.items():
            setattr(module, name, timed(part, getattr(module, name)))
    each: dict[str, list[float]] = defaultdict(list)
    attention = timed("attention", F.scaled_dot_product_attention)
    with torch.inference_mode(), patch.object(F, "scaled_dot_product_attention", attention):
        for run in itertools.islice(itertools.cycle(runs), len(runs) + calls):
            taken.clear()
            start = time.perf_counter()
            run()
            taken["a call"] = time.perf_counter() - start
            taken["the rest"] = 2 * taken["a call"] - sum(taken.values())
            for part, seconds in taken.items():
                each[part].append(seconds)
    return {part: statistics.median(seconds[len(runs) :]) for part, seconds in each.items()}


class _Timed(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = call


def cells(taken: dict[str, float]) -> list[str]:
    """A row of the table."""
    return [f"{1e3 * taken[part]:.3f}" for part in (*PARTS, "a call")]
