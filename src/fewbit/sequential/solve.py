"""From the sums over a shared input to quantized layers in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import algorithms, calibrate
from fewbit.calibrate.gram import Statistics
from fewbit.calibrate.input_mean import InputMean
from fewbit.nn import kinds
from fewbit.nn.build import build_layers
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer
from fewbit.nn.statistics import LayerStatistics, solve_input
from fewbit.numbers.affine import check_finite
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.scale_type import fitting_spec
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan, Recipe
from fewbit.sequential.forward import forward_type
from fewbit.sequential.ranks import Ranks
from fewbit.sequential.sums import InputSums

#: What rounds a layer that needs data and saw none.
DATA_FREE = "rtn"


@dataclass(frozen=True)
class Settings:
    """How layers are quantized.

    Attributes:
        recipe: Decides the plans, and holds the calibrators.
        algorithm: How weights are rounded, a file of :mod:`fewbit.algorithms`.
        bias_correction: Correct the biases that layers have.
        forward: The type of forward passes over calibration data, see :mod:`fewbit.sequential.forward`.
    """

    recipe: Recipe
    algorithm: str = "rtn"
    bias_correction: bool = True
    forward: str = field(default_factory=lambda: forward_type(None))

    @property
    def rounding(self) -> ModuleType:
        """The algorithm's module."""
        return algorithms.get(self.algorithm)

    @property
    def needs_data(self) -> bool:
        """Whether the algorithm cannot do without data."""
        return bool(self.rounding.NEEDS)


def with_calibrator(recipe: Recipe, calibrator: str | None) -> Recipe:
    """The recipe with another choice of ranges: of activations where they are static, else of weights.

    Raises:
        FewbitError: There is no such calibrator.
    """
    if calibrator is not None:
        calibrate.get(calibrator)
        scheme = recipe.default()
        static = scheme.activations is not None and not scheme.dynamic
        recipe = replace(recipe, calibrator=calibrator) if static else replace(recipe, weight_calibrator=calibrator)
    for name in (recipe.calibrator, recipe.weight_calibrator):
        if name is not None:
            calibrate.get(name)
    return recipe


def options_of(module: ModuleType, recipe: Recipe) -> Any:
    """The algorithm's ``Options`` under a recipe."""
    names = {each.name for each in fields(module.Options)}
    return module.Options(calibrator=recipe.weight_calibrator) if "calibrator" in names else module.Options()


def quantized_weight_of(
    matrix: Tensor, plan: LayerPlan, settings: Settings, statistics: Statistics | None, spec: QSpec | None = None
) -> tuple[QTensor, bool]:
    """The codes of a weight matrix.

    Args:
        matrix: float32 ``[out, K]``.
        plan: Of the layer.
        settings: How.
        statistics: Of the layer's input.
        spec: Instead of the plan's, for a part of a matrix.

    Returns:
        The codes, and whether the algorithm fell back to rounding without data because there was none.
    """
    assert plan.scheme is not None
    name = f"the weight of {plan.name}"
    check_finite(matrix, name)
    starved = settings.needs_data and statistics is None
    rounding = algorithms.get(DATA_FREE) if starved else settings.rounding
    options = options_of(rounding, settings.recipe)
    spec = fitting_spec(matrix, plan.scheme.weights) if spec is None else spec
    return rounding.quantize_weight(matrix, spec, options, name, statistics), starved


def solve_group(
    model: nn.Module, plans: Sequence[LayerPlan], sums: InputSums | None, settings: Settings, ranks: Ranks, owner: int
) -> list[str]:
    """Quantize and swap the layers that share one input.

    Args:
        model: Changed in place.
        plans: The layers.
        sums: Over their input; None in processes other than ``owner``.
        settings: How.
        ranks: The processes, all of which end up with the same layers.
        owner: The process that computes.

    Returns:
        The names of the layers that saw no data although the algorithm needs it.
    """
    statistics = None if sums is None else sums.statistics()
    starved: list[str] = []
    done: dict[tuple[object, ...], tuple[Tensor, QTensor]] = {}
    weights: dict[str, tuple[Tensor, QTensor]] = {}
    known: dict[str, LayerStatistics] = {}
    for plan in plans:
        assert plan.scheme is not None
        module = model.get_submodule(plan.name)
        key = (*kinds.matrix_key(module), plan.scheme.weights.text)
        if key not in done:
            matrix, codes, lacking = kinds.weight_matrix(module), None, False
            if ranks.rank == owner:
                codes, lacking = quantized_weight_of(matrix, plan, settings, statistics)
            codes, lacking = _shared(codes, lacking, ranks, owner)
            starved += [plan.name] if lacking else []
            done[key] = (matrix, codes)
        weights[plan.name] = done[key]
        known[plan.name] = _known(plan, sums, _mean(model, plan, sums, settings, ranks, owner))
    inputs = {plan.name: _input(plan, known[plan.name], settings.recipe) for plan in plans}
    starved += [name for name in inputs if name not in starved and _unseen(known[name])]
    build_layers(model, list(plans), weights, inputs, known)
    return starved


def _input(plan: LayerPlan, known: LayerStatistics, recipe: Recipe) -> InputQuantizer | None:
    """The input quantizer; activations of a layer that saw no data get their range when they come."""
    if not _unseen(known):
        return solve_input(plan, known, recipe)
    return DynamicQuantizer(QSpec.parse("int8/token/sym"))


def _unseen(known: LayerStatistics) -> bool:
    return known.range_statistic is not None and known.range_statistic.count == 0


def _mean(
    model: nn.Module, plan: LayerPlan, sums: InputSums | None, settings: Settings, ranks: Ranks, owner: int
) -> Tensor | None:
    """The mean input where the layer's own bias is to be corrected."""
    has_bias = isinstance(getattr(model.get_submodule(plan.name), "bias", None), Tensor)
    if not (settings.bias_correction and has_bias):
        return None
    mean = None if sums is None else sums.mean_input()
    return ranks.share({} if mean is None else {"mean": mean}, owner).get("mean")


def _known(plan: LayerPlan, sums: InputSums | None, mean: Tensor | None) -> LayerStatistics:
    statistic = None if sums is None else sums.ranges.get(plan.name)
    known = LayerStatistics(plan.name, statistic, False)
    if mean is not None:
        known.mean = InputMean(None, plan.name)
        known.mean.sums, known.mean.count = mean, 1
    return known


def _shared(codes: QTensor | None, lacking: bool, ranks: Ranks, owner: int) -> tuple[QTensor, bool]:
    """What the owner computed, in every process."""
    parts: dict[str, Tensor | None] = {}
    if codes is not None:
        if ranks.size == 1:
            return codes, lacking
        parts = {"codes": codes.codes, "scale": codes.scale, "zero_point": codes.zero_point}
        parts |= {"lacking": torch.tensor(lacking), "shape": torch.tensor(codes.shape)}
    spec = QSpec.parse(ranks.tell(None if codes is None else codes.spec.text, owner))
    got = ranks.share({name: part for name, part in parts.items() if part is not None}, owner)
    shape = tuple(int(size) for size in got["shape"])
    made = QTensor(got["codes"], got["scale"], got.get("zero_point"), spec, shape)
    return made, bool(got["lacking"])
