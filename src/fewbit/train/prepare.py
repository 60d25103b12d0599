"""prepare_qat(): a model that trains for its quantized form.

copy → fold batch norm on a second copy → plan → post-training ranges → put layers in training into the first copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from fewbit.algorithms import rtn
from fewbit.calibrate.collect import Progress, peek
from fewbit.errors import FewbitError
from fewbit.nn import FoldResult, QuantizationInfo, attach_info, kinds
from fewbit.nn.plan import check_plans, check_weights, join_tied
from fewbit.nn.quantizers import StaticQuantizer
from fewbit.nn.statistics import collect, dynamic_spec, new_statistics, solve_input
from fewbit.nn.swap import replace_module
from fewbit.nn.working_copy import fold_checked, working_copy
from fewbit.numbers.scale_type import fitting_spec
from fewbit.recipe import LayerPlan, Recipe, as_recipe
from fewbit.train import estimators
from fewbit.train.bypass import check_bypassed
from fewbit.train.dynamic import DynamicFake
from fewbit.train.fast_path import block_fused_layers
from fewbit.train.layers import TrainedLayer, trained_class, trained_layers
from fewbit.train.norm import FoldedNorm, seen_in_training
from fewbit.train.observer import set_momentum
from fewbit.train.quantizer import FakeQuantizer, Grid
from fewbit.train.schedule import attach_schedule, check_schedule


def prepare_qat(
    model: nn.Module,
    recipe: Recipe | str | Path,
    data: Iterable[Any] | None = None,
    *,
    estimator: str = "lsq",
    freeze_ranges_after: int | None = None,
    freeze_norms_after: int | None = None,
    range_momentum: float | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """A copy of a model that trains for its quantized form, in any training loop.

    Parameters keep their names (those of a folded batch norm move to ``LAYER.folded_norm.norm``); learned steps, ranges
    and counts are parameters and buffers beside them, so that ``state_dict`` holds the whole state. In evaluation mode
    the model computes what :func:`fewbit.convert` gives.

    Args:
        model: A trained float model; it is not changed.
        recipe: As :func:`fewbit.quantize` takes it.
        data: Calibration batches. With them every range starts from post-training quantization; without, ranges of
            static activations start from the first training batch.
        estimator: How rounding is trained through, a file of :mod:`fewbit.train.estimators`: ``lsq`` (learned steps),
            ``lsq_plus`` (steps and zero points), ``pact`` (learned clips of activations) or ``ste`` (ranges that follow
            the data).
        freeze_ranges_after: Training steps after which ranges and learned steps stay as they are; None: never. A step
            is a forward in training mode, so each micro-batch of an accumulated gradient counts.
        freeze_norms_after: Training steps after which folded batch norms use their running statistics; None: never.
        range_momentum: What ``ste`` keeps of a moving average at each step, at least 0 and below 1; None: 0.99. Lower
            where a run is short, or ranges move fast.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        The model in training mode.

    Raises:
        FewbitError: As :func:`fewbit.quantize`; no such estimator; a momentum without sense, or that the estimator has
            no use for; the model is in training already; a weight is multiplied outside its layer (found where there is
            data).
    """
    _check_model(model)
    check_schedule(freeze_ranges_after, freeze_norms_after)
    estimator_module, recipe = estimators.get(estimator), as_recipe(recipe)
    begin = _post_training(model, recipe, data, progress)
    work = _in_training(copy.deepcopy(model), begin, estimator_module, recipe, progress)
    block_fused_layers(work)
    if begin.first is not None:
        check_bypassed(work, begin.first)
    if range_momentum is not None:
        set_momentum(work, range_momentum, estimator)
    attach_schedule(work, freeze_ranges_after, freeze_norms_after)
    about = QuantizationInfo(recipe.to_dict(), f"qat-{estimator}", begin.notes, begin.folded.pairs, begin.skipped)
    attach_info(work, about)
    return work.train()


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise FewbitError(f"prepare_qat takes an nn.Module, not {type(model).__name__}; load the model first")
    if hasattr(model, "_orig_mod"):
        raise FewbitError(
            "the model is compiled; prepare the model that torch.compile was given, and compile the result"
        )
    if trained_layers(model):
        raise FewbitError("the model is prepared for training already; convert it, or prepare the float model")


@dataclass(frozen=True)
class _Start:
    """The first batch, the folded float copy, the plans of the layers that train, where their inputs' ranges start."""

    first: Any
    folded: FoldResult
    chosen: list[LayerPlan]
    inputs: dict[str, Grid]
    notes: list[str]
    skipped: dict[str, str]


def _post_training(model: nn.Module, recipe: Recipe, data: Iterable[Any] | None, progress: Progress | None) -> _Start:
    """As post-training quantization begins: fold, plan, and solve the ranges of inputs where there is data."""
    first, batches = peek(data)
    folded = fold_checked(working_copy(model), first)
    plans = recipe.plan((name, kind) for name, _, kind in kinds.quantizable(folded.model))
    plans, notes = join_tied(folded.model, plans)
    check_plans(plans)
    chosen = [plan for plan in plans if plan.scheme is not None]
    check_weights(folded.model, chosen)
    inputs: dict[str, Grid] = {}
    if batches is not None:
        statistics = new_statistics(chosen, recipe, bias_correction=False)
        collect(folded.model, statistics, batches, progress)
        for plan in chosen:
            solved = solve_input(plan, statistics[plan.name], recipe)
            if isinstance(solved, StaticQuantizer):
                inputs[plan.name] = (solved.scale, solved.zero_point)
    skipped = {plan.name: plan.reason for plan in plans if plan.scheme is None}
    return _Start(first, folded, chosen, inputs, [*notes, *folded.notes], skipped)


@dataclass(frozen=True)
class _Parts:
    """What a layer in training is made from: the plan, the estimator, the folded matrix, the input's start."""

    plan: LayerPlan
    estimator: ModuleType
    matrix: Tensor
    start: Grid | None

    def weight_quantizer(self, recipe: Recipe) -> FakeQuantizer:
        """Started from the range of post-training quantization."""
        assert self.plan.scheme is not None
        name = f"the weight of {self.plan.name}"
        spec = fitting_spec(self.matrix, self.plan.scheme.weights)
        codes = rtn.quantize_weight(self.matrix, spec, rtn.Options(recipe.weight_calibrator), name)
        made: FakeQuantizer = self.estimator.weight_quantizer(self.matrix, spec, (codes.scale, codes.zero_point), name)
        return made

    def input_quantizer(self) -> FakeQuantizer | DynamicFake | None:
        """Static, dynamic or none."""
        scheme = self.plan.scheme
        assert scheme is not None
        if scheme.activations is None:
            return None
        if scheme.dynamic:
            return DynamicFake(dynamic_spec(scheme.activations, self.plan.kind))
        name = f"the input of {self.plan.name}"
        made: FakeQuantizer = self.estimator.input_quantizer(scheme.activations, self.start, name)
        return made


def _in_training(
    work: nn.Module, begin: _Start, estimator: ModuleType, recipe: Recipe, progress: Progress | None
) -> nn.Module:
    """Put every chosen layer in training, in place."""
    fold = dict(begin.folded.pairs)
    quantizers: dict[tuple[object, ...], FakeQuantizer] = {}
    for step, plan in enumerate(begin.chosen, 1):
        layer, folded = work.get_submodule(plan.name), begin.folded.model.get_submodule(plan.name)
        matrix = kinds.weight_matrix(folded)
        if plan.name in fold:
            matrix = seen_in_training(matrix, kinds.weight_matrix(layer))
        parts = _Parts(plan, estimator, matrix, begin.inputs.get(plan.name))
        _put_in_training(work, layer, parts, recipe, quantizers, fold.get(plan.name))
        if progress is not None:
            progress("prepare", step, len(begin.chosen))
    return work


def _put_in_training(
    model: nn.Module,
    layer: nn.Module,
    parts: _Parts,
    recipe: Recipe,
    quantizers: dict[tuple[object, ...], FakeQuantizer],
    norm_name: str | None,
) -> None:
    """Give the layer the class of its kind in training, and what that class needs."""
    key = kinds.matrix_key(layer)
    shared = quantizers.get(key)
    device = parts.matrix.device
    layer.__class__ = trained_class(type(layer))  # type: ignore[arg-type]
    assert isinstance(layer, TrainedLayer)
    layer.plan = parts.plan
    if shared is None:
        quantizers[key] = layer.weight_quantizer = parts.weight_quantizer(recipe).to(device)
    else:  # a plain reference: a state_dict holds the quantizer of tied weights once
        layer.__dict__["weight_quantizer"] = shared
    made = parts.input_quantizer()
    layer.input_quantizer = None if made is None else made.to(device)
    layer.folded_norm = None
    if norm_name is not None:
        norm = model.get_submodule(norm_name)
        replace_module(model, norm, nn.Identity())
        layer.folded_norm = FoldedNorm(norm)
