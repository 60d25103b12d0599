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
_LAST = "fewbit_last_step"  # of this process


def freeze(model: nn.Module, *, ranges: bool | None = None, norms: bool | None = None) -> None:
    """Freeze or thaw what the arguments name.

    Args:
        model: Made by :func:`fewbit.prepare_qat`.
        ranges: Moving-average ranges, learned steps and clips; None leaves them as they are.
        norms: The statistics of folded batch norms; None leaves them as they are.

    Raises:
        FewbitError: The model was not prepared for training.
    """
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantizer)]
    if not quantizers:
        raise FewbitError("nothing here can be frozen: freeze takes a model that prepare_qat made")
    if ranges is not None:
        for quantizer in quantizers:
            quantizer.freeze(ranges)
    if norms is not None:
        for module in model.modules():
            if isinstance(module, FoldedNorm):
                module.freeze(norms)


def check_schedule(ranges: int | None, norms: int | None) -> None:
    """Refuse what is no count of steps."""
    for name, limit in (("freeze_ranges_after", ranges), ("freeze_norms_after", norms)):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise FewbitError(f"{name} is a number of training steps, 0 or more, not {limit!r}")


def attach_schedule(model: nn.Module, ranges: int | None, norms: int | None) -> None:
    """Count the model's training steps in a buffer, and freeze when the count is reached.

    A step is one forward in training mode with gradients; one that gradient checkpointing repeats does not count. The
    buffer is there without a schedule, too, so that states fit models with other schedules.
    """
    model.register_buffer(_STEPS, torch.zeros((), dtype=torch.int64))
    model.__dict__[_LIMITS] = (ranges, norms)
    model.__dict__[_LAST] = -1
    if ranges is not None or norms is not None:
        model.register_forward_pre_hook(_count)


def detach_schedule(model: nn.Module) -> None:
    """Remove the count and its hook."""
    for module in model.modules():
        if _LIMITS in module.__dict__:
            del module.__dict__[_LIMITS], module.__dict__[_LAST]
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
    last, module.__dict__[_LAST] = module.__dict__[_LAST], done
    # Once, when the count is reached or a state beyond it was loaded: what is thawed by hand later stays thawed.
    if ranges is not None and last < ranges <= done:
        freeze(module, ranges=True)
    if norms is not None and last < norms <= done:
        freeze(module, norms=True)
