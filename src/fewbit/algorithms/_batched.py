"""Rounding many small matrices at once: the channels of a depthwise convolution, each with a Gram matrix of its own.

Lowers ``tr(D G Dᵀ)`` of each group by a search over scales and coordinate descent over codes (each code in turn goes
where the error is least, the others held; arXiv 2309.01885), all groups in step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.algorithms import _lattice
from fewbit.numbers.spec import QSpec

_CLIPS = 24


def solve_groups(weight: Tensor, gram: Tensor, spec: QSpec, sweeps: int = 8) -> tuple[Tensor, Tensor]:
    """Codes and scales of least output error that coordinate descent finds; never worse than rounding to nearest.

    Args:
        weight: float32 ``[G, out, K]``.
        gram: float32 ``[G, K, K]``.
        spec: A symmetric integer format, one scale a row.
        sweeps: Over all columns, at most.

    Returns:
        Whole numbers in float32 ``[G, out, K]`` and scales ``[G, out]``.
    """
    scale = best_scale(weight, gram, spec)
    codes = torch.round(weight / scale[..., None]).clamp_(spec.qmin, spec.qmax)
    return descend(weight, gram, codes, scale, spec, sweeps), scale


def best_scale(weight: Tensor, gram: Tensor, spec: QSpec, clips: int = _CLIPS) -> Tensor:
    """The scale ``[G, out]`` of least output error for rounding to nearest, the whole range among those tried."""
    low, high = weight.amin(-1).reshape(-1), weight.amax(-1).reshape(-1)
    scales, _ = _lattice.candidates(low, high, spec, clips)
    scales = scales.reshape(*weight.shape[:2], -1)
    errors = torch.stack(
        [output_errors(round_trip(weight, scales[..., i], spec) - weight, gram) for i in range(scales.shape[-1])],
        dim=-1,
    )
    return scales.gather(-1, errors.argmin(-1, keepdim=True)).squeeze(-1)


def round_trip(weight: Tensor, scale: Tensor, spec: QSpec) -> Tensor:
    """``s · clamp(round(w / s))``."""
    step = scale[..., None]
    return torch.round(weight / step).clamp_(spec.qmin, spec.qmax) * step


def output_errors(change: Tensor, gram: Tensor) -> Tensor:
    """``d G dᵀ`` of each row, ``[G, out]``."""
    return ((change @ gram) * change).sum(-1)


def descend(weight: Tensor, gram: Tensor, codes: Tensor, scale: Tensor, spec: QSpec, sweeps: int) -> Tensor:
    """Move codes while that lowers the error; each move is exact for its column."""
    codes, gradient = codes.clone(), (codes * scale[..., None] - weight) @ gram
    curvature = gram.diagonal(dim1=-2, dim2=-1)
    for _ in range(sweeps):
        moved = False
        for column in range(weight.shape[-1]):
            step = gradient[..., column] / curvature[:, column, None].clamp(min=1e-20)
            wanted = torch.round(codes[..., column] - step / scale).clamp_(spec.qmin, spec.qmax)
            difference = torch.where(curvature[:, column, None] > 0, (wanted - codes[..., column]) * scale, 0.0)
            # On a tie, or where rounding in float32 would let a code go back and forth, it stays.
            gain = difference * (2 * gradient[..., column] + difference * curvature[:, column, None])
            difference = torch.where(gain < 0, difference, 0.0)
            if bool(difference.any()):
                moved = True
                codes[..., column] += torch.round(difference / scale)
                gradient += difference[..., None] * gram[:, column, None, :]
        if not moved:
            break
    return codes
