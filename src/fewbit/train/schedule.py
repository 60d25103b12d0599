"""When ranges and batch norm stop moving: by hand, or after a number of training steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.train.gradient import recomputing
from fewbit.train.norm import FoldedNorm
from fewbit.train.quantizer import FakeQuantizer

_STEPS = "fewbit_training_steps"
_LIMITS = "fewbit_freeze_after"


def freeze(model: nn.Module, *, ranges: bool | None = None, norms: bool | None = None) -> None:
    """Freeze or thaw what the arguments name.

    Args:
        model: Made by :func:`fewbit.prepare_qat`.
        ranges: Moving-average ranges, learned steps and clips; None leaves them as they are.
        norms: The statistics of folded batch norms; None leaves them as they are.
    """
    for module in model.modules():
        if isinstance(module, FakeQuantizer) and ranges is not None:
            module.frozen = ranges
        if isinstance(module, FoldedNorm) and norms is not None:
            module.frozen = norms


def attach_schedule(model: nn.Module, ranges: int | None, norms: int | None) -> None:
    """Count the model's training steps in a buffer, and freeze when the count is reached.

    A step is one forward in training mode with gradients; one that gradient checkpointing repeats does not count.
    """
    if ranges is None and norms is None:
        return
    if min(limit for limit in (ranges, norms) if limit is not None) < 0:
        raise FewbitError("ranges and norms freeze after a number of steps, 0 or more")
    model.register_buffer(_STEPS, torch.zeros((), dtype=torch.int64))
    model.__dict__[_LIMITS] = (ranges, norms)
    model.register_forward_pre_hook(_count)


def detach_schedule(model: nn.Module) -> None:
    """Remove the count and its hook."""
    for module in model.modules():
        if _LIMITS in module.__dict__:
            del module.__dict__[_LIMITS]
            del module._buffers[_STEPS]
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _count]:
                del hooks[key]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _count(module: nn.Module, _args: Any) -> None:
    if not module.training or not torch.is_grad_enabled() or recomputing():
        return
    steps = module._buffers[_STEPS]
    assert steps is not None
    done = int(steps)
    steps.add_(1)
    ranges, norms = module.__dict__[_LIMITS]
    # Set on every step: a resumed run has the count but not the flags.
    if ranges is not None and done >= ranges:
        freeze(module, ranges=True)
    if norms is not None and done >= norms:
        freeze(module, norms=True)
