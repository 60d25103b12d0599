"""What is done to a traced network while it is still in float: equalization, absorption, and the means that follow from
its batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewbit.calibrate.input_mean import InputMean
from fewbit.errors import FewbitError
from fewbit.integer.arguments import arguments
from fewbit.integer.capture import Capture, capture
from fewbit.integer.chains import chains
from fewbit.integer.equalize import Moments, equalize
from fewbit.integer.expected import expected_inputs, mean_rows
from fewbit.nn.preserved import preserved_state


def prepare_network(model: nn.Module, steps: Sequence[str], first: Any, moments: Moments) -> tuple[list[str], Moments]:
    """Run the steps ``equalize`` and ``absorb`` of an algorithm's name, in place.

    Args:
        model: In float, its batch norms folded.
        steps: All of them; others are left alone.
        first: One batch, to trace the model.
        moments: Mean and standard deviation of the outputs of layers that had a batch norm.

    Returns:
        Notes for the user, and the moments as they are now.

    Raises:
        FewbitError: There is no batch, the model cannot be traced, or there is nothing to do.
    """
    wanted = [step for step in steps if step in ("equalize", "absorb")]
    if not wanted:
        return [], moments
    found = chains(_captured(model, first, " and ".join(wanted)), model)
    done = equalize(model, found, moments, absorb="absorb" in wanted, scale="equalize" in wanted)
    if "equalize" in wanted and not done.equalized:
        raise FewbitError("equalize found no two layers of which one alone feeds the other through ReLU or nothing")
    notes = [f"the channels between {done.equalized} pairs of layers were evened out"] if done.equalized else []
    if "absorb" in wanted:
        notes.append(f"biases were handed on between {done.absorbed} pairs of layers")
    return notes, done.moments


def analytic_means(model: nn.Module, first: Any, moments: Moments) -> dict[str, InputMean]:
    """The mean inputs of layers by batch norm; see :mod:`.expected`.

    Args:
        model: In float, its batch norms folded.
        first: One batch, to trace the model.
        moments: Mean and standard deviation of the outputs of layers that had a batch norm.

    Raises:
        FewbitError: There is no batch, the model cannot be traced, or there was no batch norm.
    """
    if not moments:
        raise FewbitError("analytic bias correction follows batch norms, and none was folded; use the empirical one")
    found = _captured(model, first, "analytic bias correction")
    means = {}
    for name, channels in expected_inputs(found, model, moments).items():
        rows = mean_rows(model.get_submodule(name), channels)
        means[name] = InputMean(None, name)
        means[name].sums, means[name].count = rows, 1
    return means


def _captured(model: nn.Module, first: Any, what: str) -> Capture:
    if first is None:
        raise FewbitError(f"{what} traces the network; pass data, of which one batch will do")
    args, kwargs = arguments(model, first)
    with preserved_state(model):
        return capture(model, args, kwargs)
