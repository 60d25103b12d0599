"""``calibrator="best"`` on a module: each input's calibrator by what its codes do to the layer's output.

One more pass over a part of the data. Only inputs with one range for the whole tensor are measured; others keep the
calibrator of least squared error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fewbit.calibrate import best
from fewbit.calibrate.collect import Progress, run_batches
from fewbit.calibrate.kept import first_part
from fewbit.calibrate.patches import patch_rows
from fewbit.calibrate.range import Range
from fewbit.nn import kinds
from fewbit.nn.intercept import Call
from fewbit.nn.observe import observed
from fewbit.nn.preserved import preserved_state
from fewbit.nn.statistics import LayerStatistics
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan

_ROWS = 1024  # of one layer and one batch
_AXES = 2  # a convolution with more is not measured


def choose(
    model: nn.Module,
    plans: list[LayerPlan],
    statistics: Mapping[str, LayerStatistics],
    batches: Iterable[Any] | None,
    progress: Progress | None = None,
) -> tuple[dict[str, Range], list[str]]:
    """The range of each layer's input, by layer, and a note on which calibrators they come from.

    Args:
        model: The float model.
        plans: The layers; those without static activations are passed over.
        statistics: What one pass over the data has collected.
        batches: The data, gone through again.
        progress: Called with (stage, batches done, batches in all).
    """
    measured = {plan.name: spec for plan in plans if (spec := _measured(plan, statistics[plan.name])) is not None}
    if not measured or batches is None:
        return {}, []
    ranges, errors, weights = {}, {}, {}
    for name, spec in measured.items():
        statistic = statistics[name].range_statistic
        assert statistic is not None
        ranges[name] = best.candidates(statistic, spec)
        errors[name] = dict.fromkeys(ranges[name], 0.0)
        weights[name] = kinds.weight_matrix(model.get_submodule(name))

    def see(name: str, call: Call) -> None:
        spec, walk = measured[name], call.geometry
        if call.kind == "embedding" or (walk is not None and len(walk.kernel) > _AXES):
            return
        rows = patch_rows(_batched(call.x, walk), walk, _ROWS).float()
        weight = weights[name].reshape(rows.shape[0], -1, weights[name].shape[1])
        for calibrator, error in best.output_errors(rows, weight, ranges[name], spec).items():
            errors[name][calibrator] += error

    with preserved_state(model), observed(model, list(measured), see):
        run_batches(model, first_part(batches), progress, "choose calibrators")
    chosen = {name: min(found, key=found.__getitem__) for name, found in errors.items()}
    counts = ", ".join(f"{name} {count}" for name, count in Counter(chosen.values()).most_common())
    note = f"calibrators by the measured error of each layer's output: {counts}"
    return {name: ranges[name][calibrator] for name, calibrator in chosen.items()}, [note]


def _measured(plan: LayerPlan, statistics: LayerStatistics) -> QSpec | None:
    """The spec of an input that can be measured."""
    spec, statistic = None if plan.scheme is None else plan.scheme.activations, statistics.range_statistic
    if spec is None or not isinstance(spec.granularity, PerTensor) or statistic is None or statistic.count == 0:
        return None
    return spec


def _batched(x: Tensor, walk: Any) -> Tensor:
    """``x`` with an axis of samples."""
    return x if walk is None or x.dim() == len(walk.kernel) + 2 else x.unsqueeze(0)
