"""Checks of a plan against the model it is for, and the joining of tied layers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.kernels.activations import integer_activations
from fewbit.kernels.lowbit import groups_problem
from fewbit.numbers.affine import check_finite, not_finite
from fewbit.numbers.granularity import PerChannel
from fewbit.recipe import LayerPlan, Scheme


def join_tied(model: nn.Module, plans: list[LayerPlan]) -> tuple[list[LayerPlan], list[str]]:
    """Layers that share one parameter share its quantization: the most precise that any of them asked for.

    Returns:
        The plans, and a note for each group that had to be joined.
    """
    groups: dict[int, list[LayerPlan]] = defaultdict(list)
    for plan in plans:
        groups[id(model.get_submodule(plan.name).weight)].append(plan)
    joined: dict[str, LayerPlan] = {}
    notes = []
    for group in groups.values():
        if len(group) < 2 or len({_weights(plan) for plan in group}) == 1:
            continue
        names = " and ".join(plan.name for plan in group)
        floating = next((plan for plan in group if plan.scheme is None), None)
        if floating is not None:
            notes.append(f"{names} share one weight and stay in float, as {floating.name} does ({floating.reason})")
            joined |= {p.name: replace(p, scheme=None, reason=f"tied to {floating.name}") for p in group}
            continue
        finest = max(group, key=lambda plan: plan.scheme.weights.bits if plan.scheme else 0)
        assert finest.scheme is not None
        notes.append(f"{names} share one weight, which is quantized as {finest.scheme.weights}")
        for plan in group:
            assert plan.scheme is not None
            joined[plan.name] = replace(plan, scheme=replace(plan.scheme, weights=finest.scheme.weights))
    return [joined.get(plan.name, plan) for plan in plans], notes


def _weights(plan: LayerPlan) -> str:
    return "float" if plan.scheme is None else str(plan.scheme.weights)


def check_plans(plans: list[LayerPlan]) -> None:
    """Refuse what no product can compute, before any work is done.

    Raises:
        FewbitError: A spec does not fit its layer; the message names the layer.
    """
    if all(plan.scheme is None for plan in plans):
        raise FewbitError("the recipe leaves every layer in float; there is nothing to quantize")
    for plan in plans:
        if plan.scheme is not None:
            problem = _problem(plan.kind, plan.scheme)
            if problem is not None:
                raise FewbitError(f"layer {plan.name} ({plan.kind}): {problem}")


def check_weights(model: nn.Module, plans: list[LayerPlan]) -> None:
    """Refuse weights that have no codes, before data is run through them.

    Raises:
        FewbitError: NaN or infinity; the message names the layer.
    """
    for plan in plans:
        weight = model.get_submodule(plan.name).weight
        assert isinstance(weight, Tensor)
        check_finite(weight, f"the weight of {plan.name}")


def check_parameters(model: nn.Module) -> None:
    """Refuse norms, embeddings and biases that are not finite, before the data is blamed for what comes out.

    Raises:
        FewbitError: NaN or infinity; the message names the parameter. A mask of minus infinity, which is not trained,
            is none.
    """
    for name, parameter in model.named_parameters():
        kind = not_finite(parameter)
        if kind is None or (kind == "infinity" and not parameter.requires_grad and bool((parameter < math.inf).all())):
            continue
        owner, _, key = name.rpartition(".")
        raise FewbitError(f"the {key} of {owner or 'the model'} holds {kind}; mend it before quantizing")


def _problem(kind: str, scheme: Scheme) -> str | None:
    weights, grain = scheme.weights, scheme.weights.granularity
    if str(grain) == "token" or (isinstance(grain, PerChannel) and grain.axis != 0):
        return f"weights are quantized per tensor, per channel (axis 0, the output) or per group, not {grain}"
    if scheme.activations is None:
        return None
    if not weights.format.is_integer:
        return f"weights in {weights.format.name} have no integer product; leave the activations in float (A16)"
    if scheme.activations.scale_type != "f32":
        return f"activations have float32 scales; leave /{scheme.activations.scale_type} out of {scheme.activations}"
    convolves = kind.startswith("Conv") and kind != "Conv1D"
    activations = scheme.activations
    per_block = str(activations.granularity) != "tensor"
    if scheme.dynamic and convolves and per_block and not activations.symmetric:
        return "dynamic activations of a convolution are symmetric, or per tensor"
    if scheme.dynamic and not convolves and activations.granularity == PerChannel(0):
        return "dynamic activations have scales per token, per group or per tensor"
    return integer_activations(activations, scheme.dynamic) or groups_problem(activations, weights)
