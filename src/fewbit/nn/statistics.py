"""What quantizing a layer needs to know about its input, and the solution of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewbit import calibrate
from fewbit.calibrate.collect import Progress, run_batches
from fewbit.calibrate.input_mean import InputMean
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import Statistic
from fewbit.errors import FewbitError
from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.nn.observe import observed
from fewbit.nn.preserved import preserved_state
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer, StaticQuantizer
from fewbit.numbers import affine
from fewbit.numbers.granularity import PerGroup
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan, Recipe


@dataclass
class LayerStatistics:
    """The statistics of one layer's input.

    Attributes:
        name: The layer.
        range_statistic: For a static activation range, else None.
        wants_mean: Whether the mean input is collected, for bias correction.
        mean: Made at the first input, when the geometry is known.
    """

    name: str
    range_statistic: Statistic | None
    wants_mean: bool
    mean: InputMean | None = None

    def __bool__(self) -> bool:
        return self.range_statistic is not None or self.wants_mean

    def update(self, call: Call) -> None:
        """Take in one input."""
        if call.kind == "embedding" or call.x.numel() == 0:
            return
        if self.range_statistic is not None:
            self.range_statistic.update(call.x)
        if self.wants_mean:
            if self.mean is None:
                self.mean = InputMean(call.geometry, self.name)
            if self.mean.geometry != call.geometry:  # padding that follows the input's size
                self.mean.geometry = call.geometry
            self.mean.update(call.x)


def new_statistics(plans: list[LayerPlan], recipe: Recipe, bias_correction: bool) -> dict[str, LayerStatistics]:
    """Empty statistics for each planned layer."""
    module = calibrate.get(recipe.calibrator)
    options = _options(module, recipe)
    made = {}
    for plan in plans:
        scheme = plan.scheme
        assert scheme is not None
        statistic = None
        if scheme.activations is not None and not scheme.dynamic:
            name = f"the input of {plan.name}"
            statistic = module.new_statistic(scheme.activations.granularity, options, name)
        made[plan.name] = LayerStatistics(plan.name, statistic, bias_correction and plan.kind != "Embedding")
    return made


def collect(
    model: nn.Module, statistics: dict[str, LayerStatistics], batches: Iterable[Any], progress: Progress | None
) -> None:
    """One pass over the data for all statistics of all layers; the model is as before afterwards."""
    if any(statistics.values()):
        see = observed(model, list(statistics), lambda name, call: statistics[name].update(call))
        with preserved_state(model), see:
            run_batches(model, batches, progress)


def _options(module: Any, recipe: Recipe) -> Any:
    try:
        return module.Options(**recipe.calibrator_options)
    except TypeError as error:
        raise FewbitError(f"calibrator {recipe.calibrator!r}: {error}") from error


def solve_input(
    plan: LayerPlan, statistics: LayerStatistics, recipe: Recipe, bounds: Range | None = None
) -> InputQuantizer | None:
    """The input quantizer of a layer: none, dynamic, or static with the calibrated range, or a range at hand.

    Raises:
        FewbitError: The layer never saw data.
    """
    scheme = plan.scheme
    assert scheme is not None
    if scheme.activations is None:
        return None
    if scheme.dynamic:
        return DynamicQuantizer(dynamic_spec(scheme.activations, plan.kind))
    statistic = statistics.range_statistic
    assert statistic is not None
    if statistic.count == 0:
        raise FewbitError(
            f"layer {plan.name} never saw data in calibration; pass batches that reach it, or skip it with a rule"
        )
    module = calibrate.get(recipe.calibrator)
    bounds = bounds or module.solve(statistic, scheme.activations, _options(module, recipe))
    scale, zero_point = affine.scale_and_zero_point(
        bounds.lo, bounds.hi, scheme.activations, f"the input of {plan.name}"
    )
    return StaticQuantizer(scheme.activations, scale, zero_point)


def dynamic_spec(spec: QSpec, kind: str) -> QSpec:
    """Per token (or group) means per sample in a convolution, whose pixels share one product."""
    per_row = str(spec.granularity) == "token" or isinstance(spec.granularity, PerGroup)
    if kind.startswith("Conv") and kind != "Conv1D" and per_row:
        return QSpec.parse(f"{spec.format.name}/channel/{'sym' if spec.symmetric else 'asym'}")
    return spec


def float_bias(module: nn.Module) -> Tensor | None:
    """The layer's bias in float32, or None."""
    bias = getattr(module, "bias", None)
    return bias.detach().float().clone() if isinstance(bias, Tensor) and kinds.kind(module) != "Embedding" else None
