"""The integer network of a quantized model: capture, simplify, place, measure what no layer measured, lower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import calibrate
from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.integer.arguments import arguments
from fewbit.integer.capture import Capture, capture
from fewbit.integer.ir import LAYERS, Affine, Network, Node
from fewbit.integer.lower import fit_biases
from fewbit.integer.place import Placement, affine_of, place
from fewbit.integer.refine import FloatLayer, with_weight
from fewbit.integer.separate import separate
from fewbit.integer.simplify import simplify
from fewbit.integer.simulate import simulate
from fewbit.nn import info
from fewbit.nn.preserved import preserved_state
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec


def integer_network(model: nn.Module, batches: Iterable[Any], progress: Progress | None = None) -> Network:
    """The integer network of a model.

    Args:
        model: From ``fewbit.quantize`` with static activations.
        batches: Examples, as for calibration. The first one is traced; where the model does not remember the ranges
            of the tensors between its layers, all of them are measured.
        progress: Called with (stage, steps done, steps in all) while ranges are measured.

    Raises:
        FewbitError: The model cannot be traced, or has no layer with static integer activations.
    """
    batches = [batches] if isinstance(batches, Tensor | Mapping) else list(batches)
    placement = placed(model, batches)
    measured = _remembered(model, placement)
    notes = []
    if measured is None:
        measured = measure(model, placement, batches, progress)
        if measured:
            notes.append(f"the ranges of {len(measured)} tensors between layers were measured on the example")
    found = placement.found
    network = Network(
        found.inputs,
        found.outputs,
        found.nodes,
        placement.affine(measured),
        found.constants,
        found.output_tree,
        notes + _in_float(found),
    )
    fit_biases(network)
    return network


def placed(model: nn.Module, batches: Sequence[Any]) -> Placement:
    """The graph of a model, simplified, and what in it is an integer.

    Raises:
        FewbitError: The model cannot be traced, or has no layer with static integer activations.
    """
    if not batches:
        raise FewbitError("tracing a model needs an example batch")
    args, kwargs = arguments(model, batches[0])
    with preserved_state(model):
        found = capture(model, args, kwargs)
    if not any(node.op in LAYERS for node in found.nodes):
        raise FewbitError(
            "the model has no layer with static integer activations; quantize it with W8A8 or W4A8 and calibration data"
        )
    simplify(found)
    separate(found)
    return place(found)


def measure(
    model: nn.Module,
    placement: Placement,
    batches: Iterable[Any],
    progress: Progress | None = None,
    floats: Mapping[str, FloatLayer] | None = None,
) -> dict[int, Affine]:
    """The quantizers that no layer asked for, from one pass over the batches by the recipe's own calibrator.

    Args:
        model: Remembers its recipe.
        placement: Of its graph.
        batches: As the model takes them.
        progress: Called with (stage, steps done, steps in all).
        floats: The layers before their weights were rounded, to measure what the float network makes.
    """
    missing = placement.missing()
    if not missing:
        return {}
    like = _of_8_bits(next(asked[0] for asked in placement.wanted if asked))
    module, options, spec = _calibrator(model, like)
    numbers = {value: number for number in missing for value in placement.values(number)}
    statistics = {n: module.new_statistic(PerTensor(), options, placement.values(n)[0]) for n in missing}
    found = placement.found
    known = placement.affine(dict.fromkeys(missing, like))
    known = {value: affine for value, affine in known.items() if value not in numbers}

    nodes = found.nodes
    if floats is not None:
        nodes, known = [_float_again(node, floats) for node in nodes], {}

    def see(name: str, value: Tensor) -> None:
        if name in numbers:
            statistics[numbers[name]].update(value)

    total = len(batches) if isinstance(batches, Sized) else 0
    for step, batch in enumerate(batches, 1):
        args, kwargs = arguments(model, batch)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        simulate(nodes, dict(zip(found.inputs, leaves)), found.constants, known, found.outputs, see)
        if progress is not None:
            progress("measure tensors between layers", step, total)
    measured = {}
    for number, statistic in statistics.items():
        bounds = module.solve(statistic, spec, options)
        measured[number] = affine_of(float(bounds.lo), float(bounds.hi), like)
    return measured


def _of_8_bits(like: Affine) -> Affine:
    """What lies between layers has 8 bits, with codes that are signed, or around 0, as those of the layers are."""
    if like.bits == 8:
        return like
    low, high = (-128, 127) if like.qmin < 0 else (0, 255)
    return Affine(like.scale, like.zero_point, low, high)


def _float_again(node: Node, floats: Mapping[str, FloatLayer]) -> Node:
    layer = floats.get(node.layer)
    if layer is None or node.weight is None:
        return node
    return with_weight(node, layer.weight.reshape(node.weight.codes.shape), layer.bias)


def _calibrator(model: nn.Module, like: Affine) -> tuple[Any, Any, QSpec]:
    """The calibrator that the model's own activations were ranged by, its options, and the spec of its codes."""
    made = info(model)
    recipe = {} if made is None else made.recipe
    module = calibrate.get(recipe.get("calibrator", "mse"))
    options = module.Options(**recipe.get("calibrator_options", {}))
    symmetric = like.qmin < 0 and like.zero_point == 0
    spec = QSpec.parse(f"{'int' if like.qmin < 0 else 'uint'}{like.bits}/tensor/{'sym' if symmetric else 'asym'}")
    return module, options, spec


def _remembered(model: nn.Module, placement: Placement) -> dict[int, Affine] | None:
    """What :func:`remember` kept, None when it does not fit the graph that was traced now."""
    made = info(model)
    missing = placement.missing()
    if made is None or len(made.between) != len(missing):
        return None
    kept = [Affine(float(s), int(z), int(low), int(high)) for _, s, z, low, high in made.between]
    return dict(zip(missing, kept))


def _in_float(found: Capture) -> list[str]:
    """A sentence on each kind of operation between integer layers that stays in float."""
    made = {node.name for node in found.nodes if node.integer}
    islands = [
        node for node in found.nodes if not node.integer and node.op != "shape" and any(n in made for n in node.inputs)
    ]
    names = sorted({str(getattr(node.target, "__name__", node.op)) for node in islands})
    return [f"in float, between integers: {', '.join(names)}"] if names else []
