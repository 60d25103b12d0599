"""Scales in the type they are stored in: rounded before codes are computed, so that a file loses nothing.

A scale of 16 bits costs a group of 128 weights 0.125 bits a weight instead of 0.25.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerGroup
from fewbit.numbers.spec import QSpec


def round_scale(scale: Tensor, spec: QSpec, name: str = "tensor") -> Tensor:
    """Positive float32 scales rounded to the nearest value of the spec's scale type, still in float32.

    A scale below the type's smallest step becomes that step: what it would have told apart is smaller than it.

    Raises:
        FewbitError: A scale is too large for the type; the message names the tensor and the remedy.
    """
    if spec.scale_type == "f32":
        return scale
    limits = torch.finfo(spec.scale_dtype)
    if not torch.compiler.is_compiling() and bool((scale > limits.max).any()):
        raise FewbitError(
            f"{name} has a scale of {float(scale.max()):.3g}, more than {spec.scale_type} holds ({limits.max:.3g}); "
            f"leave /{spec.scale_type} out of {spec}"
        )
    step = limits.smallest_normal * (limits.eps if spec.scale_type == "f16" else 1)
    return scale.to(spec.scale_dtype).to(torch.float32).clamp(min=step)


def fitting_groups(spec: QSpec, columns: int) -> QSpec:
    """The spec itself, or with groups of a row of ``columns`` where its groups are wider.

    Kernels take 32 columns at a time, so that a group is a multiple of that.
    """
    grain, row = spec.granularity, -(-columns // 32) * 32
    return replace(spec, granularity=PerGroup(row)) if isinstance(grain, PerGroup) and grain.size > row > 0 else spec


def fitting_spec(x: Tensor, spec: QSpec) -> QSpec:
    """The spec itself, or with groups no wider than a row of ``x``, and with float32 scales where its type would hold
    those of ``x`` badly or not at all.

    Badly: even the largest scale is below the type's normal numbers, where it has fewer digits.
    """
    spec = fitting_groups(spec, x.shape[-1]) if x.dim() else spec
    if spec.scale_type == "f32" or x.numel() == 0:
        return spec
    limits = torch.finfo(spec.scale_dtype)
    lo, hi = (float(end) for end in torch.aminmax(x.detach()))
    steps = max(spec.qmax, -spec.qmin) if spec.symmetric else spec.qmax - spec.qmin
    largest = (max(-lo, hi) if spec.symmetric else max(hi, 0.0) - min(lo, 0.0)) / steps
    fits = largest == 0 or limits.smallest_normal <= largest <= limits.max / 2
    return spec if fits else replace(spec, scale_type="f32")
