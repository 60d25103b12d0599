"""The static part of a job: one pass over the data for ranges and means, then codes for everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.integer.maxima import keep_maxima_apart
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import drift, observe, placement, ranges, targets
from fewbit.onnxgraph.choice import choose as choose_ranges
from fewbit.onnxgraph.constants import bytes_behind
from fewbit.onnxgraph.equalize import equalize
from fewbit.onnxgraph.session import Runner
from fewbit.onnxpipeline.faster import Solved, choose
from fewbit.onnxpipeline.inputs import Inputs
from fewbit.onnxpipeline.rounding import rounded
from fewbit.recipe import LayerPlan

if TYPE_CHECKING:
    from fewbit.onnxpipeline.quantize import Job

_DEFAULT = "uint8/tensor/asym"


def run(job: Job, plans: list[LayerPlan], data: Iterable[Any] | None) -> None:
    """Quantize the planned layers of a job's model with static activations.

    Raises:
        FewbitError: A spec that no runtime computes with; the data does not fit the model; a value is not finite.
    """
    from fewbit.onnxpipeline.quantize import layer_weights, peeked

    assert data is not None
    spec = _activation_spec(job, plans)
    usable = [plan for plan in plans if plan.kind in job.target.products]
    for plan in plans:
        if plan not in usable:
            job.skipped[plan.name] = f"{job.target.name} has no integer kernel for {plan.kind}"
    if not usable:
        raise FewbitError(_none_usable(job, {plan.kind for plan in plans}))
    for plan in usable:
        assert plan.scheme is not None
        layer_weights(plan.scheme.weights, plan.name)
    first, data = peeked(data)
    if not first:
        raise FewbitError("the calibration data is empty; pass at least one batch")
    layers = [job.layers[plan.name] for plan in usable]
    if job.settings.equalize and (count := equalize(job.model, list(job.layers.values()), first)):
        job.notes.append(f"evened out the channels of {count} linear streams")
    places = placement.place(job.model, layers, job.target)
    others = [job.layers[plan.name] for plan in job.chosen if plan not in plans]  # of other schemes
    job.inputs = Inputs.wanted(job, [*layers, *others], data, static=layers)
    codes = _activations(job, places, job.inputs, spec)
    weights, biases = _weights(job, usable)
    solved = Solved(job.model, job.target, places, codes, weights, biases)
    kept = set(weights) if not job.settings.only_if_faster else _measured(job, solved, first[0])
    if job.settings.bias_correction:
        solved = _without_drift(job, solved, kept, job.inputs.data.batches)
    written = solved.written(kept)
    nodes = {node.name: node for node in written.graph}
    for plan in usable:
        if plan.name not in kept:
            job.skipped[plan.name] = "integers are not faster there"
            continue
        source = job.layers[plan.name].node.inputs[0].name
        how = str(spec) if source in places.group else "float"
        job.tell(plan, weights[plan.name], how, bytes_behind(nodes[plan.name]), bias_too=True)
    keep_maxima_apart(written)
    job.replace_model(written)


def _none_usable(job: Job, kinds: set[str]) -> str:
    able = [name for name in targets.names() if kinds & targets.get(name).products]
    hint = f"; --target {' or '.join(able)} does" if able else ""
    return f"{job.target.name} computes none of the chosen layers ({', '.join(sorted(kinds))}) on integers{hint}"


def _without_drift(job: Job, solved: Solved, kept: set[str], batches: list[Any]) -> Solved:
    """The same with biases that answer what the quantized network really computes; see :mod:`.drift`."""
    layers = [layer for layer in solved.places.layers if layer.name in kept]
    written = solved.written(kept)
    biases = drift.corrected(job.model, written, layers, solved.biases, batches, job.told_progress)
    return replace(solved, biases=biases)


def _measured(job: Job, solved: Solved, batch: Any) -> set[str]:
    """The layers that integers make faster on the job's target, by :mod:`.faster`."""
    runner = Runner(job.model)
    feeds = observe.one_sample(job.model, runner.feeds(batch))
    job.regions = choose(solved, feeds, job.told_progress)
    return {name for region in job.regions if region.kept for name in region.layers}


def _activation_spec(job: Job, plans: list[LayerPlan]) -> QSpec:
    specs = {plan.scheme.activations for plan in plans if plan.scheme is not None}
    if len(specs) > 1:
        raise FewbitError("all static layers of an ONNX model share one kind of activations; the rules name several")
    spec = specs.pop()
    assert spec is not None
    if spec == QSpec.parse(_DEFAULT):
        spec = QSpec.parse(job.target.activations)
    if not spec.format.is_integer or spec.bits != 8 or not isinstance(spec.granularity, PerTensor):
        raise FewbitError(f"ONNX runtimes compute on 8-bit activations with one scale a tensor, not on {spec}")
    if job.target.name == "tensorrt" and spec != QSpec.parse(job.target.activations):
        raise FewbitError(f"TensorRT takes {job.target.activations} activations, not {spec}")
    return spec


def _activations(
    job: Job,
    places: placement.Placement,
    inputs: Inputs,
    spec: QSpec,
) -> dict[str, Any]:
    """One pass over the data, and the quantizers that follow from it."""
    recipe = job.recipe
    statistics = ranges.new_statistics(places, recipe.calibrator, recipe.calibrator_options)
    inputs.observe(statistics, job.progress)
    groups = ranges.merged(places, statistics)
    if recipe.calibrator == "best":
        codes, chosen = choose_ranges(job.model, places, groups, inputs.data.batches, spec)
        counts = ", ".join(f"{name} {count}" for name, count in Counter(chosen.values()).most_common())
        job.notes.append(f"calibrators by the measured error of the layers behind: {counts}")
        return codes
    return ranges.solve(groups, recipe.calibrator, recipe.calibrator_options, spec)


def _weights(job: Job, plans: list[LayerPlan]) -> tuple[dict[str, QTensor], dict[str, Tensor]]:
    """Codes of all weights, and all biases."""
    weights: dict[str, QTensor] = {}
    biases: dict[str, Tensor] = {}
    for step, plan in enumerate(plans, 1):
        weights[plan.name], bias = rounded(job, plan)
        if bias is not None:
            biases[plan.name] = bias
        job.told_progress("quantize", step, len(plans))
    return weights, biases
