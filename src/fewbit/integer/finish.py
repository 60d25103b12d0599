"""The last stage of quantizing a network that can be traced: ranges between its layers, and weights rounded in its
order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.integer.arguments import arguments
from fewbit.integer.build import measure, placed
from fewbit.integer.place import Placement
from fewbit.integer.refine import FloatLayer, Options, Refinement, Solved
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import info, kinds, quantized_layers, quantized_weight
from fewbit.nn.statistics import float_bias
from fewbit.recipe import LayerPlan


def is_network(plans: Sequence[LayerPlan]) -> bool:
    """Whether there is a convolution with static activations: a network that is worth tracing as a whole."""
    schemes = [plan.scheme for plan in plans if plan.kind.startswith("Conv") and plan.kind != "Conv1D"]
    return any(scheme is not None and scheme.activations is not None and not scheme.dynamic for scheme in schemes)


def float_layers(model: nn.Module, plans: Sequence[LayerPlan]) -> dict[str, FloatLayer]:
    """The planned layers of a model that are still in float."""
    layers = {}
    for plan in plans:
        assert plan.scheme is not None
        module = model.get_submodule(plan.name)
        matrix, bias = kinds.weight_matrix(module), float_bias(module)
        filled = torch.zeros(len(matrix)) if bias is None else bias
        layers[plan.name] = FloatLayer(matrix, filled, plan.scheme.weights)
    return layers


def finish(
    model: nn.Module,
    floats: Mapping[str, FloatLayer],
    batches: Iterable[Any],
    algorithm: ModuleType | None,
    progress: Progress | None = None,
) -> list[str]:
    """Measure the ranges of the tensors between a model's layers and keep them with it; round its weights again.

    Args:
        model: Quantized; changed in place where there is an algorithm.
        floats: Its layers before.
        batches: Calibration data, gone through again.
        algorithm: Rounds weights by the Gram matrix of their input, a module of :mod:`fewbit.algorithms`; None: weights
            stay as they are.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        Sentences on what was done, and on why the network stays in float between its layers, if so.

    Raises:
        FewbitError: There is an algorithm, and the model cannot be traced.
    """
    made = info(model)
    assert made is not None
    first = next(iter(batches), None)
    try:
        placement = placed(model, [] if first is None else [first])
    except FewbitError as error:
        if algorithm is None:
            return [f"between layers activations stay in float: {error}"]
        raise FewbitError(f"this algorithm rounds a network's layers in their order, but {error}") from error
    measured = measure(model, placement, batches, progress, floats)
    made.between = [
        [placement.values(number)[0], a.scale, a.zero_point, a.qmin, a.qmax] for number, a in measured.items()
    ]
    if algorithm is None:
        return []
    options = Options()
    shared = _shared(model, placement)
    own = {name: layer for name, layer in floats.items() if name not in shared}
    refinement = Refinement(placement, placement.affine(measured), own, algorithm, options)
    solved = refinement.run(_inputs(model, batches, options.samples), progress)
    for name, result in solved.items():
        _install(model.get_submodule(name), result)
    return [f"the weights and biases of {len(solved)} layers were rounded in the network's order"]


def _inputs(model: nn.Module, batches: Iterable[Any], samples: int) -> list[list[Tensor]]:
    """The tensors of each batch, for so many samples at most."""
    found: list[list[Tensor]] = []
    for batch in batches:
        if samples <= 0:
            break
        leaves = torch.utils._pytree.tree_leaves(arguments(model, batch))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        taken = min(samples, len(tensors[0]))
        found.append([tensor[:taken] if len(tensor) == len(tensors[0]) else tensor for tensor in tensors])
        samples -= taken
    return found


def _shared(model: nn.Module, placement: Placement) -> set[str]:
    """Layers that are called more than once or share their weight; what suits one use need not suit the other."""
    calls = Counter(node.layer for node in placement.found.nodes if node.layer)
    packed = Counter(id(quantized_weight(layer).packed) for layer in quantized_layers(model).values())
    layers = quantized_layers(model).items()
    tied = {name for name, layer in layers if packed[id(quantized_weight(layer).packed)] > 1}
    return tied | {name for name, count in calls.items() if count > 1}


def _install(layer: nn.Module, solved: Solved) -> None:
    """Put new codes and a new bias into a quantized layer."""
    packed, matrix = quantized_weight(layer).packed, PackedMatrix.pack(solved.codes)
    device = packed.codes.device
    packed.codes, packed.scale = matrix.codes.to(device), matrix.scale.to(device)
    packed.zero_point = None if matrix.zero_point is None else matrix.zero_point.to(device)
    layer.bias = solved.bias.to(device)
