"""A block's layers quantized in turns, as data meets them.

Each layer is so calibrated on what the quantized ones before it put out, those of its own block included, as far as
they come in an earlier turn, and a pass over the data ends with the block's outputs. Windows wait in front of the
layers that come next, where what they hold fits into the memory allowed; else they start again from the block's input
for every group, which gives the same bits. Where a turn has several groups, the module that holds them runs in float to
show what they see, and then again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewbit.models.layout import Block
from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.numbers.affine import check_finite
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture, tree
from fewbit.sequential.calibration import Fold, Group, columns, gather, is_held_back, new_sums, park, starved_note
from fewbit.sequential.forward import narrow, over_windows, stand_in
from fewbit.sequential.gates import Crew, Gate, Rehearsal
from fewbit.sequential.solve import solve_group
from fewbit.sequential.sums import InputSums
from fewbit.sequential.turns import turns_of, what_runs
from fewbit.sequential.work import Work

_MOST_THREADS = 512
# What a window holds while it waits, for each value of the widest input of a layer: that and the states beside it.
_BYTES = 12

Inputs = Callable[[int, range], Iterator[tuple[int, Tensor]]]
"""Called with a group and windows: each window that meets the group, with its input."""


def in_order(work: Work, plans: Sequence[LayerPlan]) -> bool:
    """Whether a block's layers can be quantized so: its family's table says what shares an input, and all are matrices
    that are called."""
    if work.generic or not work.settings.needs_data:
        return False
    modules = [work.store.model.get_submodule(plan.name) for plan in plans]
    called = all(kinds.kind(m) in ("Linear", "Conv1D") and not kinds.has_own_forward(m) for m in modules)
    static = any(p.scheme is not None and p.scheme.activations is not None and not p.scheme.dynamic for p in plans)
    return called and not static


def solve_in_order(
    work: Work,
    block: Block,
    groups: Sequence[Group],
    forward: Callable[[int], Tensor],
    done: Callable[[int, Tensor], None] | None,
) -> tuple[list[str], bool]:
    """Quantize the layers of a block.

    Args:
        work: The run.
        block: The block.
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
    stage = _Stage(work, block, groups)
    waits = _fits(work, groups)
    with stage:
        if waits:
            _in_one_pass(stage, forward, done)
        else:
            _pass_after_pass(stage, forward)
    return starved_note(stage.starved), waits and done is not None


class _AllSeen(Exception):
    """The inputs of all groups of a turn are known."""


class _Stage:
    """Groups and their turns, those of them that are quantized, and the gates in front of the others.

    A context, in which gates stand in the model, and at whose end the layers do, quantized as far as it came.
    """

    def __init__(self, work: Work, block: Block, groups: Sequence[Group]) -> None:
        self.work, self.groups, self.turns = work, groups, turns_of(block, groups)
        self.left, self.opened = list(range(len(self.turns))), set[int]()
        self.starved: list[str] = []
        model = work.store.model
        # A float layer goes from here when it is quantized: those of one block can be most of a run's memory.
        self.layers = {plan.name: model.get_submodule(plan.name) for group in groups for plan in group}
        self.meet: Callable[[int, Mapping[int, Tensor]], None] = _nobody
        self._seen = threading.local()
        self.gates = {
            plan.name: Gate(self.layers[plan.name], partial(self._arrive, turn, number))
            for turn, members in enumerate(self.turns)
            for number in members
            for plan in groups[number]
        }
        together = [(turn, members) for turn, members in enumerate(self.turns) if len(members) > 1]
        self.together = [plan.name for _, members in together for number in members for plan in groups[number]]
        holders = {turn: what_runs(model, block.name, self.together) for turn, _ in together}
        # A block is run by whoever has it, and is none of the modules that a stand can replace.
        self._whole = next((turn for turn, name in holders.items() if name == block.name), None)
        inner = [(turn, name) for turn, name in holders.items() if name != block.name]
        self._real = {name: model.get_submodule(name) for _, name in inner}
        self._stands = {name: Rehearsal(self._real[name], partial(self._rehearsed, turn)) for turn, name in inner}

    def __enter__(self) -> Self:
        self._put(self.gates)
        self._put(self._stands)
        return self

    def __exit__(self, *_: object) -> None:
        self._put(self._real)
        self._put(self.layers)
        # They know this stage: as a cycle they would outlive the block, with all its weights.
        self.gates.clear()
        self._stands.clear()
        self.meet = _nobody

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, key = name.rpartition(".")
            self.work.store.model.get_submodule(parent)._modules[key] = module

    def run(self, forward: Callable[[int], Tensor], window: int) -> Tensor:
        """The block on a window."""
        whole = partial(forward, window)
        found: Tensor = whole() if self._whole is None else self._rehearsed(self._whole, whole)
        return found

    def _rehearsed(self, turn: int, run: Callable[[], Any]) -> Any:
        if turn not in self.opened:
            self._seen.inputs = inputs = dict[int, Tensor]()
            with contextlib.suppress(_AllSeen):  # what comes behind changes nothing
                run()
            self.meet(turn, inputs)
            inputs.clear()
        return run()

    def _arrive(self, turn: int, number: int, x: Tensor) -> None:
        if len(self.turns[turn]) == 1:
            self.meet(turn, {number: x})
            return
        inputs: dict[int, Tensor] = self._seen.inputs
        if number not in inputs:
            # A copy, as the float model may go on working in place.
            inputs[number] = x.detach().to(self._multiplied(x), copy=True)
        if len(inputs) == len(self.turns[turn]):
            raise _AllSeen

    def _multiplied(self, x: Tensor) -> torch.dtype:
        """The type of what a layer multiplies: under autocast that is its input in bfloat16."""
        return torch.bfloat16 if self.work.compute == "bfloat16" else x.dtype

    def choose(self, seen: int | None) -> int:
        """The turn that comes next: the one that the first window meets, or any that it does not."""
        told = self.work.ranks.tell(seen, 0)
        turn = self.left[0] if told is None else int(told)
        self.left.remove(turn)
        return turn

    def solve(self, turn: int, inputs: Inputs) -> None:
        """Sum up the inputs of a turn's groups, and quantize them."""
        for number in self.turns[turn]:
            self._solve(number, inputs)
        for plan in (plan for number in self.turns[turn] for plan in self.groups[number]):
            self.gates[plan.name].put(stand_in(self.layers[plan.name], self.work.compute))
        self.opened.add(turn)
        self.work.trim()

    def _solve(self, number: int, inputs: Inputs) -> None:
        work, group = self.work, self.groups[number]
        owner = number % work.ranks.size
        sums = gather(work, self._sums(number, inputs), owner)
        model = work.store.model
        names = [plan.name for plan in group]
        with capture.replaced(model, self._real | {name: self.layers[name] for name in names}):
            self.starved += solve_group(model, group, sums, work.settings, work.ranks, owner)
            self.layers |= {name: model.get_submodule(name) for name in names}
        if sums is not None:
            sums.leave()

    def _sums(self, number: int, inputs: Inputs) -> Fold:
        fold = Fold(lambda left, right: left.join(right))
        for leaf_number, leaf in self.work.leaves:
            sums: InputSums = new_sums(self.work, self.groups[number])
            for window, x in inputs(number, leaf):
                sums.update(Call("linear", x.to(self._multiplied(x))), is_held_back(window))
            sums.flush()
            fold.push(tree.Node(0, leaf_number, sums))
            park(self.work, {0: fold})
            self.work.trim()
        return fold


def _nobody(turn: int, inputs: Mapping[int, Tensor]) -> None:
    raise AssertionError("no gate is met outside of a pass")


def _in_one_pass(stage: _Stage, forward: Callable[[int], Tensor], done: Callable[[int, Tensor], None] | None) -> None:
    work = stage.work
    threads = torch.get_num_threads() if work.threads is None else work.threads
    first = work.mine[0] if work.mine else None
    crew = Crew(work.mine, partial(stage.run, forward), work.compute, threads)
    stage.meet = crew.arrive

    def inputs(number: int, leaf: range) -> Iterator[tuple[int, Tensor]]:
        here = {window: crew.waiting[window][1] for window in leaf if window in crew.waiting}
        return ((window, met[number].detach()) for window, met in here.items() if number in met)

    rehearses = [stage.layers[name] for name in stage.together]
    with crew, contextlib.ExitStack() as until_solved:
        until_solved.enter_context(narrow(rehearses if work.folder is None else (), work.compute))
        del rehearses
        while True:
            crew.settle()
            _hand_over(work, crew, done)
            if not stage.left:
                break
            turn = stage.choose(None if first is None else crew.waiting.get(first, (None, None))[0])
            if len(stage.turns[turn]) > 1:
                until_solved.close()
            stage.solve(turn, inputs)
            crew.open(turn)


def _hand_over(work: Work, crew: Crew, done: Callable[[int, Tensor], None] | None) -> None:
    outputs = crew.outputs()
    for window in sorted(outputs):
        work.step(1 if done is None else 2)
        if done is not None:
            done(window, outputs[window])


def _pass_after_pass(stage: _Stage, forward: Callable[[int], Tensor]) -> None:
    work, seen = stage.work, threading.local()

    def meet(turn: int, inputs: Mapping[int, Tensor]) -> None:
        seen.met = (turn, {number: x.detach().clone() for number, x in inputs.items()})
        raise capture.Stop

    def run(window: int) -> tuple[int, dict[int, Tensor]] | None:
        seen.met = None
        with contextlib.suppress(capture.Stop):
            stage.run(forward, window)
        met: tuple[int, dict[int, Tensor]] | None = seen.met
        return met

    def inputs(number: int, leaf: range) -> Iterator[tuple[int, Tensor]]:
        for window, met in over_windows(leaf, run, work.compute, work.threads):
            work.step()
            if met is not None and number in met[1]:
                yield window, met[1][number]

    stage.meet = meet
    work.expect(len(work.mine) * (len(stage.groups) - 1))
    while stage.left:
        looked = [met for _, met in over_windows(work.mine[:1], run, work.compute, 1) if met is not None]
        stage.solve(stage.choose(looked[0][0] if looked else None), inputs)


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
