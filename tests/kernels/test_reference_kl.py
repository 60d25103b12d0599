"""Divergences of windows: the twin against the definition, window by window, and the kernel against the twin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewbit.kernels import dispatch, reference_kl


def by_definition(counts: list[float], start: int, stop: int, levels: int, smoothing: float) -> float:
    """KL(P || Q) with P and Q written out."""
    own = counts[start:stop]
    total, inside, bins = sum(counts), sum(own), stop - start
    if not inside:
        return math.inf
    p = list(own)
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    level = [j * levels // bins for j in range(bins)]
    filled = [sum(1 for j in range(bins) if level[j] == g and p[j] > 0) for g in range(levels)]
    mass = [sum(own[j] for j in range(bins) if level[j] == g) for g in range(levels)]
    q = [
        (1 - smoothing) * mass[level[j]] / (inside * max(filled[level[j]], 1)) + smoothing / sum(filled)
        for j in range(bins)
    ]
    return sum(p[j] / total * math.log(p[j] / total / q[j]) for j in range(bins) if p[j] > 0)


def windows(bins: int, levels: int) -> tuple[Tensor, Tensor]:
    """All of at least as many bins as levels."""
    pairs = [(a, b) for a in range(bins) for b in range(a + levels, bins + 1)]
    return torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])


def histogram(bins: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 40, (bins,), generator=generator).double()
    return counts * (torch.rand(bins, generator=generator) < 0.7)


@pytest.mark.parametrize("levels", [2, 5, 8, 13])
@pytest.mark.parametrize("compute", [reference_kl.kl_divergences, dispatch.kl_divergences], ids=["twin", "kernel"])
def test_every_window_has_the_divergence_of_the_definition(levels: int, compute: object) -> None:
    for seed in range(3):
        counts = histogram(17, seed)
        start, stop = windows(17, levels)
        found = compute(counts, start, stop, levels, 1e-3)  # type: ignore[operator]
        for a, b, value in zip(start.tolist(), stop.tolist(), found.tolist(), strict=True):
            wanted = by_definition(counts.tolist(), a, b, levels, 1e-3)
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-12), (a, b)


@pytest.mark.parametrize("levels", [128, 255])
def test_the_kernel_equals_its_twin(levels: int) -> None:
    counts = histogram(2048, 5) * torch.linspace(1, 1e6, 2048).round().double()
    start, stop = torch.arange(0, 1500, 7), torch.arange(0, 1500, 7) + levels + torch.arange(215)
    ours = dispatch.kl_divergences(counts, start, stop, levels, 1e-4)
    theirs = reference_kl.kl_divergences(counts, start, stop, levels, 1e-4)
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_window_without_counts_is_infinitely_far() -> None:
    counts = torch.tensor([0.0, 0, 0, 5, 7, 0], dtype=torch.float64)
    start, stop = torch.tensor([0, 2]), torch.tensor([2, 5])
    for compute in (reference_kl.kl_divergences, dispatch.kl_divergences):
        found = compute(counts, start, stop, 2, 1e-4)
        assert found[0] == math.inf
        assert found[1].isfinite()
