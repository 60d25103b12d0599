"""The sequential pipeline: block after block, each calibrated on what the quantized blocks before it put out.

capture calls → for each block: load → sum up inputs and round weights, one group of layers after another → release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewbit.errors import FewbitError, failing
from fewbit.models.layout import Block
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture
from fewbit.sequential.activations import tabled
from fewbit.sequential.calibration import calibrate_and_solve, set_ranges
from fewbit.sequential.collector import old_objects_left_out
from fewbit.sequential.forward import over_windows, stand_ins
from fewbit.sequential.groups import shared_inputs
from fewbit.sequential.hidden import HiddenStates
from fewbit.sequential.reconstruct import float_twin, reconstruct, unlearned_note
from fewbit.sequential.staged import in_order, solve_in_order
from fewbit.sequential.thin import few_positions, few_windows
from fewbit.sequential.work import Passed, Work


def run_stacks(work: Work, stacks: Sequence[Sequence[Block]]) -> None:
    """Quantize the blocks of every stack, in order.

    Raises:
        FewbitError: The model does not run its blocks one after another, or values are not finite.
    """
    _check_static(work)
    _check_algorithm(work)
    names = [block.name for stack in stacks for block in stack]
    left = sum(not work.store.finished(name) for name in names)
    work.begin(left, len(names) - left)
    work.expect(2 * len(work.mine) * left)
    work.whole += few_windows(work)
    with old_objects_left_out():
        for number, stack in enumerate(stacks):
            _run_stack(work, number, stack)


def run_tail(work: Work, behind: Sequence[LayerPlan], swapped: Sequence[LayerPlan]) -> list[str]:
    """Finish the layers outside of the blocks, which were left or lack something.

    Args:
        work: The run, all stacks of which are done.
        behind: Float layers behind the blocks, such as the output layer.
        swapped: Layers whose weights were quantized without data; those with static activations get their ranges.

    Returns:
        Notes for the user.
    """
    model = work.store.model
    static = [plan for plan in swapped if is_static(plan) and plan.kind != "Embedding"]
    work.expect(len(work.mine) * (bool(behind) + bool(static)))
    only = behind[0].name if len(behind) == 1 else ""

    def forward(window: int, stop_at: str = "") -> None:
        # Registered behind the hook that looks, so that the one output layer need not be computed.
        hook = model.get_submodule(stop_at).register_forward_pre_hook(capture.stop) if stop_at else None
        try:
            capture.finish(model, work.windows[window], work.behind(window), window)
        finally:
            if hook is not None:
                hook.remove()

    work.threads = 1  # the model's blocks are replaced for each window
    if static:
        set_ranges(work, static, forward)
    return calibrate_and_solve(work, [(plan,) for plan in behind], lambda w: forward(w, only)) if behind else []


def is_static(plan: LayerPlan) -> bool:
    """Whether a layer's activations have a calibrated range."""
    return plan.scheme is not None and plan.scheme.activations is not None and not plan.scheme.dynamic


def _run_stack(work: Work, number: int, stack: Sequence[Block]) -> None:
    names = tuple(block.name for block in stack)
    states = work.states(f"{number}-0000")
    calls, form, positions = _enter(work, names, states)
    plans = [plan for name in names for plan in work.planned(name)]
    work.whole += few_positions(work, plans, positions) + unlearned_note(work, plans)
    for index, block in enumerate(stack):
        behind = work.states(f"{number}-{index + 1:04d}")
        if not work.store.finished(block.name):
            _run_block(work, block, {window: each[index] for window, each in calls.items()}, states, behind)
            work.block_done()
        states.remove()
        states = behind
    work.passed.append(Passed(names, form, states))


def _enter(
    work: Work, names: tuple[str, ...], states: HiddenStates
) -> tuple[dict[int, list[capture.BlockCall]], object, int]:
    """How each block is called, window by window, what the first one returns, and how many positions all windows have
    together; the first block's inputs are put into ``states``."""
    interned, form, positions = capture.Interned(), None, 0
    calls: dict[int, list[capture.BlockCall]] = {}
    resumed = work.store.finished(names[0])
    work.store.load(names[0], "float32")

    def run(window: int) -> capture.Captured:
        nonlocal form
        before = work.behind(window)
        seen = capture.capture(work.store.model, work.windows[window], names, before, interned, form, window)
        form = seen.form
        return seen

    for window, seen in over_windows(work.mine, run, "float32", 1):
        calls[window] = seen.calls
        positions += 0 if seen.hidden is None else seen.hidden.shape[:-1].numel()
        if not resumed and seen.hidden is not None:
            states.put(window, seen.hidden)
    if resumed:
        work.store.unload(names[0])
    ranks = work.ranks
    positions = sum(int(ranks.tell(positions if rank == ranks.rank else None, rank)) for rank in range(ranks.size))
    return calls, form, positions


def _run_block(
    work: Work, block: Block, calls: dict[int, capture.BlockCall], states: HiddenStates, behind: HiddenStates
) -> None:
    work.store.load(block.name, work.compute)
    work.trim()
    module = work.store.model.get_submodule(block.name)
    plans = work.planned(block.name)

    def forward(window: int) -> Tensor:
        with failing(f"block {block.name} failed on calibration window {window + 1}", capture.REMEDY):
            return calls[window].run(module, states.get(window))

    def output(window: int) -> Tensor:
        return _checked(forward(window).float(), block.name)

    notes: list[str] = []
    done = False
    if plans:
        first = work.mine[0] if work.mine else None
        look = (lambda: forward(first or 0)) if work.generic else None
        groups = shared_inputs(block, module, plans, look, work.ranks)
        before = float_twin(module, work.settings)
        with capture.replaced(work.store.model, tabled(work.store.model, block.name, work.compute)):
            if in_order(work, plans):
                notes, done = solve_in_order(work, block, groups, output, None if before is not None else behind.put)
            else:
                notes = calibrate_and_solve(work, groups, forward)
        if before is not None:
            notes += reconstruct(work, before, module, lambda m, w: calls[w].outputs(m, states.get(w)))
    else:
        work.step(len(calls))
    if not done:
        _outputs(work, block, output, behind)
    work.ranks.barrier()
    work.notes += notes
    work.store.release(block.name, notes)
    work.trim()


def _outputs(work: Work, block: Block, output: Callable[[int], Tensor], behind: HiddenStates) -> None:
    """What the quantized block makes of every window."""
    model, compute = work.store.model, work.compute
    stands = stand_ins(model, compute, block.name) | tabled(model, block.name, compute)
    with capture.replaced(model, stands):
        for window, state in over_windows(work.mine, output, work.compute, work.threads):
            behind.put(window, state)
            work.step()


def _checked(output: Tensor, name: str) -> Tensor:
    # The ends are NaN where a value is; to look at each value for itself takes ten times as long.
    if output.numel() and not all(map(torch.isfinite, output.aminmax())):
        raise FewbitError(
            f"the outputs of the quantized block {name} are not finite on a calibration window; look at the data, give "
            "its layers more bits, or skip them with a rule"
        )
    return output


def _check_algorithm(work: Work) -> None:
    instead = getattr(work.settings.rounding, "INSTEAD_FOR_TRANSFORMERS", None)
    if instead is not None:
        raise FewbitError(
            f"{work.settings.algorithm} learns the blocks of networks of convolutions; for this model's take {instead}"
        )


def _check_static(work: Work) -> None:
    static = [plan.name for plan in work.plans if is_static(plan)]
    if static and work.ranks.size > 1:
        raise FewbitError(
            f"layer {static[0]} has static activations, which are calibrated in one process: run without torchrun, or "
            "use a -dynamic scheme"
        )
