"""Summing up the inputs of groups of layers over all windows and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.nn.observe import observed
from fewbit.nn.statistics import LayerStatistics, new_statistics, solve_input
from fewbit.nn.swap import quantized_weight
from fewbit.numbers.affine import check_finite
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture, tree
from fewbit.sequential.forward import Seen, narrow, over_windows
from fewbit.sequential.solve import solve_group
from fewbit.sequential.sums import InputSums, Wanted
from fewbit.sequential.work import Work
from fewbit.wording import counted

Group = Sequence[LayerPlan]
Fold = tree.Fold[InputSums]

#: Each window of this number judges the candidates of algorithms that choose between them.
HELD_BACK_EVERY = 8


def calibrate_and_solve(work: Work, groups: Sequence[Group], forward: Callable[[int], object]) -> list[str]:
    """Sum up the inputs of groups of layers over all windows, and quantize the layers.

    Args:
        work: The run.
        groups: Layers that share an input.
        forward: Runs what holds them on a window.

    Returns:
        A note on layers that saw no data.
    """
    for plan in (plan for group in groups for plan in group):  # before its outputs are blamed on the data
        weight = work.store.model.get_submodule(plan.name).weight
        assert isinstance(weight, Tensor)
        check_finite(weight, f"the weight of {plan.name}")
    folds: dict[int, Fold] = {}
    layers = [work.store.model.get_submodule(plan.name) for group in groups for plan in group]
    with narrow(layers if work.folder is None else (), work.compute):  # as much again of a block
        for number, some in enumerate(_passes(work, groups)):
            work.expect(len(work.mine) if number else 0)
            folds |= _collect(work, {g: groups[g] for g in some}, forward, folds)
    starved: list[str] = []
    order = sorted(
        range(len(groups)), key=lambda g: columns(work, groups[g])
    )  # what is large comes when the rest is gone
    for turn, number in enumerate(order):
        owner = turn % work.ranks.size
        sums = gather(work, folds.pop(number), owner)
        starved += solve_group(work.store.model, groups[number], sums, work.settings, work.ranks, owner)
        if sums is not None:
            sums.leave()
        del sums
        work.trim()
    return starved_note(starved)


def starved_note(starved: Sequence[str]) -> list[str]:
    """A note on layers that saw no data, if there are any."""
    if not starved:
        return []
    more = f" and {counted(len(starved) - 1, 'more layer')}" if len(starved) > 1 else ""
    return [f"{starved[0]}{more} saw no calibration data and were quantized without it"]


def is_held_back(window: int) -> bool:
    """Whether a window judges candidates."""
    return window % HELD_BACK_EVERY == HELD_BACK_EVERY - 1


def set_ranges(work: Work, plans: Sequence[LayerPlan], forward: Callable[[int], object]) -> None:
    """Give static input quantizers to layers whose weights are quantized already, in one process.

    Args:
        work: The run.
        plans: The layers.
        forward: Runs what holds them on a window.
    """
    folds = _collect(work, {number: (plan,) for number, plan in enumerate(plans)}, forward, {}, ranges_only=True)
    for number, plan in enumerate(plans):
        statistic = folds[number].root().ranges[plan.name]
        weight = quantized_weight(work.store.model.get_submodule(plan.name))
        weight.input_quantizer = solve_input(plan, LayerStatistics(plan.name, statistic, False), work.settings.recipe)


def columns(work: Work, group: Group) -> int:
    """K, the width of a group's input."""
    module = work.store.model.get_submodule(group[0].name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0] if kinds.kind(module) == "Conv1D" else weight.numel() // weight.shape[0]


def _passes(work: Work, groups: Sequence[Group]) -> list[list[int]]:
    """Groups that are summed up in one pass over the data: all, or as many as fit in half of the memory allowed."""
    limit = None if work.memory is None else work.memory // 2
    passes: list[list[int]] = [[]]
    used = 0
    for number, group in enumerate(groups):
        size = columns(work, group) ** 2 * 8 if work.settings.needs_data else 0
        if limit is not None and passes[-1] and used + size > limit:
            passes.append([])
            used = 0
        passes[-1].append(number)
        used += size
    return passes


def _collect(
    work: Work,
    groups: dict[int, Group],
    forward: Callable[[int], object],
    earlier: dict[int, Fold],
    ranges_only: bool = False,
) -> dict[int, Fold]:
    """One pass over the data; what is known ``earlier`` may have to make room."""
    folds = {number: Fold(lambda left, right: left.join(right)) for number in groups}
    leaders = {group[0].name: number for number, group in groups.items()}
    for leaf_number, leaf in work.leaves:
        sums = {number: new_sums(work, group, ranges_only) for number, group in groups.items()}
        _sum_leaf(work, leaf, sums, leaders, forward, ranges_only)
        for number in groups:
            folds[number].push(tree.Node(0, leaf_number, sums.pop(number)))
        park(work, earlier | folds)
        work.trim()
    return folds


def _sum_leaf(
    work: Work,
    leaf: range,
    sums: dict[int, InputSums],
    leaders: dict[str, int],
    forward: Callable[[int], object],
    ranges_only: bool,
) -> None:
    seen = Seen()
    whole = work.generic or ranges_only  # a layer may be used again

    def receive(name: str, call: Call) -> None:
        # What the layer multiplies: under autocast that is its input in bfloat16.
        narrow = work.compute == "bfloat16" and call.kind == "linear" and not sums[leaders[name]].ranges
        dtype = torch.bfloat16 if narrow else call.x.dtype
        x = call.x.detach().to(dtype, copy=True)  # the model may go on working in place
        seen.calls.append((name, replace(call, x=x)))
        if not whole and len({name for name, _ in seen.calls}) == len(leaders):
            raise capture.Stop  # the rest of the block changes nothing

    def run(window: int) -> list[tuple[str, Call]]:
        with contextlib.suppress(capture.Stop):
            forward(window)
        return seen.take()

    with observed(work.store.model, list(leaders), receive):
        for window, calls in over_windows(leaf, run, work.compute, work.threads):
            for name, call in calls:
                sums[leaders[name]].update(call, is_held_back(window))
            work.step()
    for each in sums.values():
        each.flush()


def new_sums(work: Work, group: Group, ranges_only: bool = False) -> InputSums:
    """Empty sums over the input of a group."""
    settings = work.settings
    layers = new_statistics(list(group), settings.recipe, False)
    ranges = {name: each.range_statistic for name, each in layers.items() if each.range_statistic is not None}
    needs = settings.rounding.NEEDS
    wanted = Wanted(bool(needs), "held_back" in needs, settings.bias_correction)
    spare = work.spare if work.folder is None else None
    return InputSums(group[0].name, Wanted(False, False, False) if ranges_only else wanted, ranges=ranges, spare=spare)


def gather(work: Work, fold: Fold, owner: int) -> InputSums | None:
    """The sums over all windows, in the process that owns them; the others send theirs."""
    ranks = work.ranks
    if ranks.size == 1:
        return fold.root()
    if ranks.rank != owner:
        places = torch.tensor([[node.level, node.index] for node in fold.waiting], dtype=torch.int64)
        ranks.send({"places": places.reshape(-1, 2)}, owner)
        for node in fold.waiting:
            node.value.unpark()
            ranks.send(node.value.tensors(), owner)
        return None
    whole = Fold(lambda left, right: left.join(right))
    for rank in range(ranks.size):
        whole.extend(fold.waiting if rank == owner else list(_received(work, rank)))
    return whole.root()


def _received(work: Work, rank: int) -> Iterator[tree.Node[InputSums]]:
    for level, index in work.ranks.receive(rank)["places"].tolist():
        value = InputSums("the input of a group", Wanted(True, True, False))
        value.take(work.ranks.receive(rank))
        yield tree.Node(level, index, value)


def park(work: Work, folds: dict[int, Fold]) -> None:
    """Put waiting sums on disk while they take more than a quarter of the memory allowed, the largest first."""
    if work.memory is None or work.folder is None:
        return
    waiting = [(node.value, number, place) for number, fold in folds.items() for place, node in enumerate(fold.waiting)]
    total = sum(value.nbytes for value, _, _ in waiting)
    for value, number, place in sorted(waiting, key=lambda each: -each[0].nbytes):
        if total <= work.memory // 4:
            break
        total -= value.nbytes
        work.folder.mkdir(parents=True, exist_ok=True)
        value.park(work.folder / f"sums-{work.ranks.rank}-{number}-{place}")
