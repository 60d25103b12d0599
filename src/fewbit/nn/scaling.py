"""Scales of AWQ and SmoothQuant for a whole float model: one pass over the data, one search for each group of layers,
each scale folded into what feeds the group. The model's outputs stay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import Progress, run_batches
from fewbit.calibrate.gram import Gram, Statistics
from fewbit.calibrate.rows import Rows
from fewbit.errors import FewbitError
from fewbit.models import Group, Layout, layout
from fewbit.nn import kinds
from fewbit.nn.fold_scales import feed_channels, fold_scale
from fewbit.nn.intercept import Call
from fewbit.nn.observe import observed
from fewbit.nn.preserved import preserved_state
from fewbit.nn.statistics import dynamic_spec
from fewbit.recipe import LayerPlan, Scheme


@dataclass(frozen=True)
class Target:
    """A group of layers that will be quantized and whose input can be scaled.

    Attributes:
        group: Of the model's layout.
        planned: The layers of it that will be quantized, and how.
        channels: See :func:`fewbit.nn.fold_scales.feed_channels`.
    """

    group: Group
    planned: dict[str, Scheme]
    channels: Tensor


def scale_model(
    model: nn.Module,
    plans: Iterable[LayerPlan],
    algorithm: ModuleType,
    batches: Iterable[Any] | None,
    progress: Progress | None = None,
) -> list[str]:
    """Search and fold the scales of an algorithm, in place.

    Args:
        model: In float; its outputs stay.
        plans: What will be quantized.
        algorithm: :mod:`fewbit.algorithms.awq` or :mod:`fewbit.algorithms.smoothquant`.
        batches: Calibration data.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        A note for the user.

    Raises:
        FewbitError: There is no data, or nothing that the algorithm could do.
    """
    name = _name(algorithm)
    if batches is None:
        raise FewbitError(f"{name} needs calibration data; pass data, or an algorithm without: rtn or hqq")
    found = layout(model)
    targets = find_targets(model, found, plans, algorithm)
    if not targets:
        return [f"{name} scaled nothing: {_why_none(found, name)}"]
    samples = _sample(model, found, targets, batches, progress)
    changed = 0
    for step, target in enumerate(targets, 1):
        changed += scale_group(model, found, target, samples[target.group.linears[0]], algorithm)
        if progress is not None:
            progress(f"search scales ({name})", step, len(targets))
    return [f"{name} scaled the inputs of {changed} groups of layers; {len(targets) - changed} were best as they are"]


def find_targets(model: nn.Module, found: Layout, plans: Iterable[LayerPlan], algorithm: ModuleType) -> list[Target]:
    """The groups that an algorithm can scale: fed by something that takes a scale, with a layer that it serves."""
    schemes = {plan.name: plan.scheme for plan in plans if plan.scheme is not None}
    smooth = _smooths(algorithm)
    targets = []
    for group in (group for block in found.blocks for group in block.groups):
        planned = {name: schemes[name] for name in group.linears if name in schemes}
        if smooth:
            planned = {name: scheme for name, scheme in planned.items() if scheme.activations is not None}
        channels = feed_channels(model, found, group) if planned else None
        if channels is not None:
            targets.append(Target(group, planned, channels))
    return targets


def scale_group(model: nn.Module, found: Layout, target: Target, inputs: Rows, algorithm: ModuleType) -> bool:
    """Search the scale of one group and fold it; whether there was one better than none.

    Raises:
        FewbitError: The group never saw data.
    """
    name = target.group.linears[0]
    weights = [kinds.weight_matrix(model.get_submodule(each)).cpu() for each in target.planned]
    specs = [scheme.weights for scheme in target.planned.values()]
    if inputs.count == 0:
        return False  # an expert that no token reached
    if _smooths(algorithm):
        first = next(iter(target.planned.values()))
        assert first.activations is not None
        activations = dynamic_spec(first.activations, "Linear") if first.dynamic else first.activations
        scale = algorithm.search_scale(weights, specs, activations, inputs, None, target.channels, name)
    else:
        gram = Gram(inputs.columns, name)
        gram.update(inputs.rows)
        scale = algorithm.search_scale(weights, specs, Statistics(gram), None, target.channels, name)
    if bool((scale == 1).all()):
        return False
    fold_scale(model, found, target.group, scale)
    return True


def _sample(
    model: nn.Module, found: Layout, targets: list[Target], batches: Iterable[Any], progress: Progress | None
) -> dict[str, Rows]:
    """Rows of each group's input, by the name of its first layer."""
    samples = {}
    for target in targets:
        first = target.group.linears[0]
        columns = kinds.weight_matrix_shape(model.get_submodule(first))[1]
        samples[first] = Rows(columns, name=f"the input of {first}")

    def receive(name: str, call: Call) -> None:
        samples[name].update(call.x)

    quiet = _without_head(model, found.head)
    with quiet, preserved_state(model), observed(model, list(samples), receive), torch.no_grad():
        run_batches(model, batches, progress, "sample inputs")
    return samples


@contextlib.contextmanager
def _without_head(model: nn.Module, head: str) -> Iterator[None]:
    """A context in which the output layer does nothing: nobody looks at logits, which for a large vocabulary cost as
    much as the rest of a small model."""
    if not head:
        yield
        return
    parent_name, _, key = head.rpartition(".")
    parent, layer = model.get_submodule(parent_name), model.get_submodule(head)
    parent._modules[key] = nn.Identity()
    try:
        yield
    finally:
        parent._modules[key] = layer


def _smooths(algorithm: ModuleType) -> bool:
    return _name(algorithm) == "smoothquant"


def _name(algorithm: ModuleType) -> str:
    return algorithm.__name__.rpartition(".")[2]


def _why_none(found: Layout, name: str) -> str:
    if found.family == "generic":
        return "this architecture has no table in fewbit.models that says what feeds its layers"
    if name == "smoothquant":
        return "no layer whose input could be scaled has quantized activations"
    return "no layer whose input could be scaled is quantized"
