"""The sequential pipeline: block after block, each calibrated on what the quantized blocks before it put out.

capture calls → for each block: load → sum up inputs → round weights → run the quantized block → release.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.models.layout import Block
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture
from fewbit.sequential.calibration import calibrate_and_solve
from fewbit.sequential.groups import shared_inputs
from fewbit.sequential.hidden import HiddenStates
from fewbit.sequential.work import Passed, Work


def run_stacks(work: Work, stacks: Sequence[Sequence[Block]]) -> None:
    """Quantize the blocks of every stack, in order.

    Raises:
        FewbitError: The model does not run its blocks one after another, or values are not finite.
    """
    _check_static(work)
    work.expect(2 * len(work.mine) * sum(len(stack) for stack in stacks))
    for number, stack in enumerate(stacks):
        _run_stack(work, number, stack)


def run_tail(work: Work, plans: Sequence[LayerPlan]) -> list[str]:
    """Quantize layers that stand behind the blocks, such as the output layer.

    Returns:
        Notes for the user.
    """
    model = work.store.model
    work.expect(len(work.mine))

    def forward(window: int) -> None:
        # Registered behind the hook that looks, so that the one output layer need not be computed.
        only = model.get_submodule(plans[0].name) if len(plans) == 1 else None
        hook = None if only is None else only.register_forward_pre_hook(capture.stop)
        try:
            capture.finish(model, work.windows[window], work.behind(window))
        finally:
            if hook is not None:
                hook.remove()

    return calibrate_and_solve(work, [(plan,) for plan in plans], forward)


def _run_stack(work: Work, number: int, stack: Sequence[Block]) -> None:
    names = tuple(block.name for block in stack)
    states = work.states(f"{number}-0000")
    calls, form = _enter(work, names, states)
    for index, block in enumerate(stack):
        behind = work.states(f"{number}-{index + 1:04d}")
        if work.store.finished(block.name):
            work.step(2 * len(calls))
        else:
            _run_block(work, block, {window: each[index] for window, each in calls.items()}, states, behind)
        states.remove()
        states = behind
    work.passed.append(Passed(names, form, states))


def _enter(
    work: Work, names: tuple[str, ...], states: HiddenStates
) -> tuple[dict[int, list[capture.BlockCall]], object]:
    """How each block is called, window by window; the first block's inputs are put into ``states``."""
    interned, form = capture.Interned(), None
    calls: dict[int, list[capture.BlockCall]] = {}
    resumed = work.store.finished(names[0])
    work.store.load(names[0])
    for window in work.mine:
        before = work.behind(window)
        seen = capture.capture(work.store.model, work.windows[window], names, before, interned, form)
        form, calls[window] = seen.form, seen.calls
        if not resumed and seen.hidden is not None:
            states.put(window, seen.hidden)
    if resumed:
        work.store.unload(names[0])
    return calls, form


def _run_block(
    work: Work, block: Block, calls: dict[int, capture.BlockCall], states: HiddenStates, behind: HiddenStates
) -> None:
    work.store.load(block.name)
    module = work.store.model.get_submodule(block.name)
    plans = work.planned(block.name)

    def forward(window: int) -> Tensor:
        return calls[window].run(module, states.get(window))

    notes: list[str] = []
    if plans:
        first = work.mine[0] if work.mine else None
        look = (lambda: forward(first or 0)) if work.generic else None
        groups = shared_inputs(block, module, plans, look, work.ranks)
        notes = calibrate_and_solve(work, groups, forward)
    else:
        work.step(len(calls))
    for window in calls:
        behind.put(window, _checked(forward(window), block.name))
        work.step()
    work.ranks.barrier()
    work.notes += notes
    work.store.release(block.name, notes)


def _checked(output: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(output).all()):
        raise FewbitError(
            f"the outputs of the quantized block {name} are not finite on a calibration window; look at the data, give "
            "its layers more bits, or skip them with a rule"
        )
    return output


def _check_static(work: Work) -> None:
    schemes = {plan.name: plan.scheme for plan in work.plans if plan.scheme is not None}
    static = [name for name, scheme in schemes.items() if scheme.activations is not None and not scheme.dynamic]
    if static and work.ranks.size > 1:
        raise FewbitError(
            f"layer {static[0]} has static activations, which are calibrated in one process: run without torchrun, or "
            "use a -dynamic scheme"
        )
