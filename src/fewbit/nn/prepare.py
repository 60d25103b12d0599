"""What is done to the float model before its weights are rounded: steps that leave its outputs as they are.

An algorithm's name may have several parts, ``rotation+smoothquant+gptq``: each prepares the model in turn, and the last
one rounds the weights. ``awq`` and ``smoothquant`` do both when they come last; ``rotation``, ``equalize`` and
``absorb`` round to nearest. The last two are for networks that can be traced (:mod:`fewbit.integer.float_steps`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fewbit import algorithms
from fewbit.algorithms import awq, smoothquant
from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.nn.rotate import rotate
from fewbit.nn.scaling import scale_model
from fewbit.recipe import LayerPlan

_SCALES = {"awq": awq, "smoothquant": smoothquant}
_ROUND_TO_NEAREST = ("rotation", "equalize", "absorb")
_STEPS = (*_ROUND_TO_NEAREST, *_SCALES)


def split_name(algorithm: str) -> tuple[list[str], str]:
    """The steps that prepare the model, and the algorithm that rounds.

    Raises:
        FewbitError: A part is unknown, or stands where it cannot.
    """
    *before, last = algorithm.split("+")
    for name in before:
        if name not in _STEPS:
            raise FewbitError(f"{algorithm!r}: only {', '.join(_STEPS)} can stand before a +, not {name!r}")
    steps = [*before, last] if last in _STEPS else before
    if len(set(steps)) < len(steps) or "rotation" in steps[1:]:
        raise FewbitError(f"{algorithm!r}: each step stands once, rotation first")
    rounding = "rtn" if last in _ROUND_TO_NEAREST else last
    algorithms.get(rounding)
    return steps, rounding


def rotate_first(model: nn.Module, steps: list[str]) -> list[str]:
    """Rotate the model if that is wanted, in place, before layers are planned: it may untie weights.

    Returns:
        Notes for the user.
    """
    return rotate(model) if "rotation" in steps else []


def scales_wanted(steps: list[str]) -> bool:
    """Whether :func:`scale` has something to do, for which the data is gone through once more."""
    return any(name in _SCALES for name in steps)


def scale(
    model: nn.Module,
    steps: list[str],
    plans: Iterable[LayerPlan],
    batches: Iterable[Any] | None,
    progress: Progress | None = None,
) -> list[str]:
    """Run the steps that move scales between layers, in place.

    Args:
        model: In float; its outputs stay.
        steps: From :func:`split_name`.
        plans: What will be quantized.
        batches: Calibration data.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        Notes for the user.

    Raises:
        FewbitError: There is no data.
    """
    plans = list(plans)
    wanted = [_SCALES[name] for name in steps if name in _SCALES]
    return [note for algorithm in wanted for note in scale_model(model, plans, algorithm, batches, progress)]
