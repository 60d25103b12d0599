"""The twin of ``csrc/kl_search.h``: the divergence of windows of a histogram, all windows at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_VALUES_AT_ONCE = 32767  # the temporaries stay in the cache, and torch does not share them among threads


def kl_divergences(histogram: Tensor, start: Tensor, stop: Tensor, levels: int, smoothing: float) -> Tensor:
    """``KL(P || Q)`` of each window ``[start, stop)`` of a histogram.

    With G the count of a level, M its count in P, N its bins that are not empty in P, and e the smoothing,
    ``q = (1 - e) G / (N ΣG) + e / ΣN`` is the same in all those bins. Of
    ``KL = Σ_bins p log p − Σ_levels M/ΣM log q`` all sums within a window are differences of running sums.

    Args:
        histogram: float64 ``[bins]`` counts.
        start: int64 ``[windows]`` first bins.
        stop: int64 ``[windows]`` bins after the last; each window has at least ``levels`` bins, and 2.
        levels: Levels of Q.
        smoothing: Share of the uniform distribution in Q.

    Returns:
        float64 ``[windows]``; infinite for a window without data.
    """
    at_once = max(1, _VALUES_AT_ONCE // (levels + 1))
    pieces = zip(torch.split(start, at_once), torch.split(stop, at_once))
    sums = _Sums.of(histogram)
    return torch.cat([_divergences(sums, *piece, levels, smoothing) for piece in pieces])


@dataclass(frozen=True)
class _Sums:
    """A histogram, its total, and the running sums of its counts, its filled bins and ``h log h``."""

    histogram: Tensor
    total: Tensor
    mass: Tensor
    filled: Tensor
    h_log_h: Tensor

    @classmethod
    def of(cls, histogram: Tensor) -> _Sums:
        columns = (histogram, (histogram > 0).double(), torch.xlogy(histogram, histogram))
        return cls(histogram, histogram.sum(), *(torch.nn.functional.pad(c.cumsum(0), (1, 0)) for c in columns))


def _divergences(sums: _Sums, start: Tensor, stop: Tensor, levels: int, smoothing: float) -> Tensor:
    edges = start.unsqueeze(1) + _level_edges(stop - start, levels)
    mass, filled = sums.mass.take(edges), sums.filled.take(edges)
    g, n = mass[:, 1:] - mass[:, :-1], filled[:, 1:] - filled[:, :-1]
    m, p_log_p = g.clone(), sums.h_log_h[stop] - sums.h_log_h[start]
    for end, level, outliers in ((start, 0, mass[:, 0]), (stop - 1, -1, sums.total - mass[:, -1])):
        own = sums.histogram[end]
        m[:, level] += outliers
        n[:, level] += (own == 0) & (outliers > 0)
        p_log_p += torch.xlogy(own + outliers, own + outliers) - torch.xlogy(own, own)
    inside = g.sum(1, keepdim=True)
    q = g.div_(inside).mul_(1 - smoothing).div_(n.clamp(min=1)).add_(smoothing / n.sum(1, keepdim=True))
    divergence = (p_log_p - (m * q.log_()).sum(1)) / sums.total - sums.total.log()
    return torch.where(inside.squeeze(1) > 0, divergence, torch.inf)


def _level_edges(bins: Tensor, levels: int) -> Tensor:
    """First bin of each level, ``ceil(g · bins / levels)``, and the end: int64 ``[windows, levels + 1]``."""
    return (torch.arange(levels + 1) * bins.unsqueeze(1) + (levels - 1)).div_(levels, rounding_mode="floor")
