"""A block's layers quantized one group after another, as data meets them.

Each layer is so calibrated on what the quantized ones before it put out, those of its own block included, and a pass
over the data ends with the block's outputs. Windows wait in front of the layers that come next, where what they hold
fits into the memory allowed; else they start again from the block's input for every group, which gives the same bits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.numbers.affine import check_finite
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture, tree
from fewbit.sequential.calibration import Fold, Group, columns, gather, is_held_back, new_sums, park, starved_note
from fewbit.sequential.forward import over_windows, stand_in
from fewbit.sequential.gates import Crew, Gate
from fewbit.sequential.solve import solve_group
from fewbit.sequential.sums import InputSums
from fewbit.sequential.work import Work

_MOST_THREADS = 512
# Below, layers of a block are calibrated on what the float ones before them in it put out: on Gemma-3-270M
# that gave a KL divergence of 0.54 and not 0.61 at 3 bits, 1.29 and not 1.57 at 2. At 4 bits either gave 0.11 to 0.12,
# and one pass is faster.
_FEWEST_BITS = 4
# What a window holds while it waits, for each value of the widest input of a layer: that and the states beside it.
_BYTES = 12

Inputs = Callable[[range], Iterator[tuple[int, Tensor]]]


def in_order(work: Work, plans: Sequence[LayerPlan]) -> bool:
    """Whether a block's layers can be quantized so: its family's table says what shares an input, and all are matrices
    that are called; and codes are fine enough that what quantized layers put out is a good guide."""
    if work.generic or not work.settings.needs_data:
        return False
    if any(plan.scheme is not None and plan.scheme.weights.bits < _FEWEST_BITS for plan in plans):
        return False
    modules = [work.store.model.get_submodule(plan.name) for plan in plans]
    called = all(kinds.kind(m) in ("Linear", "Conv1D") and not kinds.has_own_forward(m) for m in modules)
    static = any(p.scheme is not None and p.scheme.activations is not None and not p.scheme.dynamic for p in plans)
    return called and not static


def solve_in_order(
    work: Work, groups: Sequence[Group], forward: Callable[[int], Tensor], done: Callable[[int, Tensor], None] | None
) -> tuple[list[str], bool]:
    """Quantize the layers of a block.

    Args:
        work: The run.
        groups: Its layers that share an input.
        forward: Runs the block on a window.
        done: Takes what the quantized block puts out on a window; None where that is not wanted.

    Returns:
        Notes for the user, and whether ``done`` was called for every window.
    """
    for plan in (plan for group in groups for plan in group):  # before its outputs are blamed on the data
        weight = work.store.model.get_submodule(plan.name).weight
        assert isinstance(weight, Tensor)
        check_finite(weight, f"the weight of {plan.name}")
    stage = _Stage(work, groups)
    waits = _fits(work, groups)
    with stage:
        if waits:
            _in_one_pass(stage, forward, done)
        else:
            _pass_after_pass(stage, forward)
    return starved_note(stage.starved), waits and done is not None


class _Stage:
    """Groups, those of them that are quantized, and the gates in front of the others.

    A context, in which gates stand in the model, and at whose end the layers do, quantized as far as it came.
    """

    def __init__(self, work: Work, groups: Sequence[Group]) -> None:
        self.work, self.groups, self.left = work, groups, list(range(len(groups)))
        self.starved: list[str] = []
        model = work.store.model
        # A float layer goes from here when it is quantized: those of one block can be most of a run's memory.
        self.layers = {plan.name: model.get_submodule(plan.name) for group in groups for plan in group}
        self.meet: Callable[[int, Tensor], None] = _nobody
        self.gates = {
            plan.name: Gate(self.layers[plan.name], partial(self._arrive, number))
            for number, group in enumerate(groups)
            for plan in group
        }

    def __enter__(self) -> Self:
        self._put(self.gates)
        return self

    def __exit__(self, *_: object) -> None:
        self._put(self.layers)
        self.gates.clear()  # they know this stage: as a cycle they would outlive the block, with all its weights

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, key = name.rpartition(".")
            self.work.store.model.get_submodule(parent)._modules[key] = module

    def _arrive(self, number: int, x: Tensor) -> None:
        self.meet(number, x)

    def choose(self, seen: int | None) -> int:
        """The group that comes next: the one that the first window meets, or any that it does not."""
        told = self.work.ranks.tell(seen, 0)
        number = self.left[0] if told is None else int(told)
        self.left.remove(number)
        return number

    def solve(self, number: int, inputs: Inputs) -> None:
        """Sum up a group's inputs, and quantize it."""
        work, group = self.work, self.groups[number]
        owner = number % work.ranks.size
        sums = gather(work, self._sums(group, inputs), owner)
        model = work.store.model
        names = [plan.name for plan in group]
        with capture.replaced(model, {name: self.layers[name] for name in names}):
            self.starved += solve_group(model, group, sums, work.settings, work.ranks, owner)
            self.layers |= {name: model.get_submodule(name) for name in names}
        if sums is not None:
            sums.leave()
        del sums
        for name in names:
            self.gates[name].put(stand_in(self.layers[name], work.compute))
        work.trim()

    def _sums(self, group: Group, inputs: Inputs) -> Fold:
        fold = Fold(lambda left, right: left.join(right))
        for leaf_number, leaf in self.work.leaves:
            sums: InputSums = new_sums(self.work, group)
            for window, x in inputs(leaf):
                # What the layer multiplies: under autocast that is its input in bfloat16.
                narrow = x.to(torch.bfloat16) if self.work.compute == "bfloat16" else x
                sums.update(Call("linear", narrow), is_held_back(window))
            sums.flush()
            fold.push(tree.Node(0, leaf_number, sums))
            park(self.work, {0: fold})
            self.work.trim()
        return fold


def _nobody(number: int, x: Tensor) -> None:
    raise AssertionError("no gate is met outside of a pass")


def _in_one_pass(stage: _Stage, forward: Callable[[int], Tensor], done: Callable[[int, Tensor], None] | None) -> None:
    work = stage.work
    threads = torch.get_num_threads() if work.threads is None else work.threads
    first = work.mine[0] if work.mine else None
    crew = Crew(work.mine, forward, work.compute, threads)
    stage.meet = crew.arrive
    with crew:
        while True:
            crew.settle()
            _hand_over(work, crew, done)
            if not stage.left:
                break
            number = stage.choose(None if first is None else crew.waiting.get(first, (None, None))[0])

            def inputs(leaf: range, number: int = number) -> Iterator[tuple[int, Tensor]]:
                here = {window: crew.waiting[window] for window in leaf if window in crew.waiting}
                return ((window, x.detach()) for window, (at, x) in here.items() if at == number)

            stage.solve(number, inputs)
            crew.open(number)


def _hand_over(work: Work, crew: Crew, done: Callable[[int, Tensor], None] | None) -> None:
    outputs = crew.outputs()
    for window in sorted(outputs):
        work.step(1 if done is None else 2)
        if done is not None:
            done(window, outputs[window])


def _pass_after_pass(stage: _Stage, forward: Callable[[int], Tensor]) -> None:
    work, seen = stage.work, threading.local()

    def meet(number: int, x: Tensor) -> None:
        seen.met = (number, x.detach().clone())
        raise capture.Stop

    def run(window: int) -> tuple[int, Tensor] | None:
        seen.met = None
        with contextlib.suppress(capture.Stop):
            forward(window)
        met: tuple[int, Tensor] | None = seen.met
        return met

    stage.meet = meet
    work.expect(len(work.mine) * (len(stage.groups) - 1))
    while stage.left:
        looked = [met for _, met in over_windows(work.mine[:1], run, work.compute, 1) if met is not None]
        number = stage.choose(looked[0][0] if looked else None)

        def inputs(leaf: range, number: int = number) -> Iterator[tuple[int, Tensor]]:
            for window, met in over_windows(leaf, run, work.compute, work.threads):
                work.step()
                if met is not None and met[0] == number:
                    yield window, met[1]

        stage.solve(number, inputs)


def _fits(work: Work, groups: Sequence[Group]) -> bool:
    """Whether all windows can wait at once."""
    if len(work.mine) > _MOST_THREADS:
        return False
    widest = max(columns(work, group) for group in groups)
    positions = sum(_length(work.windows[window]) for window in work.mine)
    return work.memory is None or positions * widest * _BYTES <= work.memory // 4


def _length(window: dict[str, object]) -> int:
    sizes = [value.shape[1] for value in window.values() if isinstance(value, Tensor) and value.dim() > 1]
    return max(sizes, default=1)
