"""Learned rounding of a block: its quantized weights are moved until it puts out what its float twin does.

Both get what the quantized blocks before put out, so that each block is held to its own work. Algorithms that want it
have ``RECONSTRUCTS``: one :class:`~fewbit.algorithms._reconstruction.Schedule` after the other, each from where the
last ended.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms._reconstruction import Part, learn, relative_error
from fewbit.errors import FewbitError, failing
from fewbit.nn.swap import quantized_weight
from fewbit.nn.tune import as_parameters, fixed_values, learnable, matrices, put, tunable
from fewbit.recipe import LayerPlan
from fewbit.sequential.capture import REMEDY
from fewbit.sequential.forward import computing
from fewbit.sequential.solve import Settings
from fewbit.sequential.work import Work

Call = Callable[[Callable[..., Any], int], Tensor]
"""Runs a block, or a function in its place, on a window."""


def float_twin(block: nn.Module, settings: Settings) -> nn.Module | None:
    """A copy of a float block to hold the quantized one to, if the algorithm wants it."""
    if not hasattr(settings.rounding, "RECONSTRUCTS"):
        return None
    return copy.deepcopy(block).requires_grad_(False)


def unlearned_note(work: Work, plans: Sequence[LayerPlan]) -> list[str]:
    """A note on layers of blocks whose rounding cannot be learned, for an algorithm that would.

    Args:
        work: The run.
        plans: Layers that are quantized.
    """
    if not hasattr(work.settings.rounding, "RECONSTRUCTS"):
        return []
    left = [plan.name for plan in plans if not _is_learned(plan)]
    if not left:
        return []
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    note = (
        f"{work.settings.algorithm} learns the rounding of linear layers with weights of fewer than 8 bits and without "
        f"static activations; it is not learned for {left[0]}{more}"
    )
    return [note]


def _is_learned(plan: LayerPlan) -> bool:
    assert plan.scheme is not None
    scheme = plan.scheme
    return learnable(plan.kind, scheme.weights.bits, scheme.activations is not None and not scheme.dynamic)


def reconstruct(work: Work, twin: nn.Module, block: nn.Module, call: Call) -> list[str]:
    """Move a quantized block's codes and scales, in place.

    Args:
        work: The run.
        twin: The block in float.
        block: The block with quantized layers.
        call: Runs a block on a window, with gradients.

    Returns:
        Notes for the user.

    Raises:
        FewbitError: The run has several processes.
    """
    if work.ranks.size > 1:
        raise FewbitError(f"{work.settings.algorithm} learns in one process: run it without torchrun")
    start = tunable(twin, block)
    if not start or not work.mine:
        return []
    fixed = fixed_values(twin, block, start)

    def forward(values: Mapping[str, Tensor], window: int) -> Tensor:
        every = {**fixed, **as_parameters(twin, values)}
        with computing(work.compute), _failing(window):
            return call(lambda *a, **k: torch.func.functional_call(twin, every, a, k), window).float()

    targets: dict[int, Tensor] = {}

    def loss(output: Tensor, window: int) -> Tensor:
        if window not in targets:
            target = targeted(window)
            if work.memory is not None:  # as large as the hidden states that may not all stay
                return relative_error(output, target)
            targets[window] = target
        return relative_error(output, targets[window])

    def targeted(window: int) -> Tensor:
        with torch.no_grad(), computing(work.compute), _failing(window):
            return call(twin, window).float()

    weights = matrices(twin, start)
    for schedule in work.settings.rounding.RECONSTRUCTS:
        start = learn(Part(forward, weights, start, work.mine, work.mine, loss), schedule).weights
    for name, t in start.items():
        put(quantized_weight(block.get_submodule(name.removesuffix(".weight"))).packed, t)
    return []


def _failing(window: int) -> contextlib.AbstractContextManager[None]:
    return failing(f"a block failed on calibration window {window + 1} while its rounding was learned", REMEDY)
