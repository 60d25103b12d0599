"""quantize(): the whole story, top to bottom.

copy → fold batch norm → plan (recipe) → observe calibration data → solve ranges and weights → swap layers → check;
language models go through :mod:`fewbit.sequential` block by block where weights are rounded with data,
networks of convolutions through :mod:`fewbit.integer`, which also finds the ranges between their layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewbit import algorithms
from fewbit.algorithms import rtn
from fewbit.algorithms.bias_correction import mode
from fewbit.calibrate.collect import Progress, peek
from fewbit.calibrate.input_mean import InputMean
from fewbit.errors import FewbitError
from fewbit.evaluate.check import doubt, some_values
from fewbit.evaluate.verdict import warn
from fewbit.integer import Replay, finish, float_layers, is_network
from fewbit.integer.float_steps import analytic_means, prepare_network
from fewbit.nn import QuantizationInfo, attach_info, kinds
from fewbit.nn.build import build_layers
from fewbit.nn.check import check_outputs
from fewbit.nn.choice import choose
from fewbit.nn.experts import split_experts
from fewbit.nn.plan import check_parameters, check_plans, check_weights, join_tied
from fewbit.nn.prepare import rotate_first, scale, scales_wanted, split_name
from fewbit.nn.statistics import LayerStatistics, collect, new_statistics, solve_input
from fewbit.nn.working_copy import fold_checked, working_copy
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.scale_type import fitting_spec
from fewbit.numbers.spec import QSpec, as_spec
from fewbit.onnxpipeline.entry import is_onnx, quantize_onnx
from fewbit.recipe import LayerPlan, Recipe, as_recipe
from fewbit.sequential.automatic import resolve, scalable
from fewbit.sequential.entry import is_folder, quantize_checkpoint
from fewbit.sequential.memory import has_blocks, quantize_blocks, tune_model
from fewbit.sequential.solve import Settings, options_of, with_calibrator


def quantize(
    model: nn.Module | str | Path,
    recipe: Recipe | str | Path,
    data: Iterable[Any] | None = None,
    *,
    calibrator: str | None = None,
    algorithm: str = "auto",
    bias_correction: bool | str = True,
    output: str | Path | None = None,
    target: str | None = None,
    only_if_faster: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Quantize a model.

    Args:
        model: Any ``nn.Module``; it is not changed. The result is a copy in evaluation mode. Or the path of an ONNX
            file, which is quantized to the file ``output``; the result is then an
            :class:`~fewbit.onnxpipeline.result.OnnxResult`. Or a Hugging Face folder, which is streamed to the folder
            ``output``; the result is its path.
        recipe: A scheme (``"W8A8"``, ``"W8A8-dynamic"``, ``"W4A16-g128"``), a :class:`Recipe`, or the path of a TOML
            file.
        data: Calibration batches (tensors, tuples, dicts; a DataLoader), gone through once. Needed by static
            activations. For a Hugging Face folder also texts, or the path of a text file.
        calibrator: Replaces the recipe's choice of ranges: of activations where they are static, else of weights.
        algorithm: How weights are rounded, a file of :mod:`fewbit.algorithms`; ``"auto"``: to nearest from 8 bits on
            (with ``smoothquant`` where activations are dynamic integers, there is data and the family is known),
            below with ``gptq`` where there is data and the model has blocks, else with ``hqq``; steps that prepare
            the model may stand before it, as in ``"rotation+gptq"``, ``"smoothquant+gptq"`` or
            ``"equalize+absorb+rtn"``, see :mod:`fewbit.nn.prepare`.
        bias_correction: Correct each bias for the mean shift that quantizing its weight causes: ``"empirical"`` (True)
            where there is data; ``"analytic"`` by the batch norms of a network that can be traced, and by data where
            they do not tell; ``"none"`` (False).
        output: Of an ONNX file or a Hugging Face folder: what to write.
        target: Of an ONNX file: the runtime it is for, ``onnxruntime``, ``openvino`` or ``tensorrt``.
        only_if_faster: Of an ONNX file: measure there, and leave in float what integers do not speed up.
        progress: Called with (stage, steps done, steps in all).

    Raises:
        FewbitError: The recipe does not fit the model, data is missing or does not reach a layer, values are not
            finite. The message names the layer and the remedy.
    """
    correction = mode(bias_correction, batch_norms=isinstance(model, nn.Module))
    if is_onnx(model):
        settings: dict[str, Any] = {"target": target, "only_if_faster": only_if_faster, "algorithm": algorithm}
        settings |= {"calibrator": calibrator, "bias_correction": correction != "none"}
        return quantize_onnx(model, recipe, data, output, progress, **settings)
    if is_folder(model):
        chosen = Settings(with_calibrator(as_recipe(recipe), calibrator), algorithm, correction != "none")
        return quantize_checkpoint(str(model), chosen, data, output, progress)
    if not isinstance(model, nn.Module):
        raise FewbitError(
            f"quantize takes an nn.Module, a Hugging Face folder or the path of an ONNX file, not "
            f"{type(model).__name__}; load the model first"
        )
    return _quantize_module(model, recipe, data, calibrator, algorithm, correction, progress)


def _quantize_module(
    model: nn.Module,
    recipe: Recipe | str | Path,
    data: Iterable[Any] | None,
    calibrator: str | None,
    algorithm: str,
    correction: str,
    progress: Progress | None,
) -> nn.Module:
    """The story for a PyTorch model."""
    recipe = with_calibrator(as_recipe(recipe), calibrator)
    algorithm = resolve(algorithm, recipe, has_blocks(model), data is not None, scalable(model))
    steps, rounding = split_name(algorithm)
    first, batches = peek(list(data) if data is not None and scales_wanted(steps) else data)
    batches = None if batches is None else Replay(batches)
    work = working_copy(model)
    check_parameters(work)
    split_experts(work)
    prepared = rotate_first(work, steps)

    folded = fold_checked(work, first)
    told, moments = prepare_network(work, steps, first, folded.moments)
    prepared += told
    means = analytic_means(work, first, moments) if correction == "analytic" else {}
    plans = recipe.plan((name, kind) for name, _, kind in kinds.quantizable(work))
    plans, notes = join_tied(work, plans)
    check_plans(plans)
    chosen = [plan for plan in plans if plan.scheme is not None]
    check_weights(work, chosen)
    prepared += scale(work, steps, chosen, batches, progress)
    notes += [*prepared, *folded.notes]
    settings = Settings(recipe, rounding, correction != "none")
    floats = float_layers(work, chosen) if batches is not None and is_network(chosen) else {}
    in_order = settings.rounding if floats and settings.needs_data and not has_blocks(work) else None
    first_settings = settings if in_order is None else replace(settings, algorithm="rtn")
    result, told = _quantize_layers(work, plans, batches, first_settings, progress, means)
    notes += told
    if batches is not None and getattr(algorithms.get(rounding), "TUNES", False) and has_blocks(model):
        notes += tune_model(model, result, batches, progress)
    skipped = {plan.name: plan.reason for plan in plans if plan.scheme is None}
    attach_info(result, QuantizationInfo(recipe.to_dict(), algorithm, notes, folded.pairs, skipped))
    by_blocks = batches is not None and settings.needs_data and has_blocks(work)  # which looked at all their outputs
    checks, measured = first is not None and not by_blocks, None
    if checks:
        measured = some_values(check_outputs(model, result, first))
    if floats and batches is not None:
        notes += finish(result, floats, batches, in_order, progress)
        measured = None  # it gives other values now
    if checks and (doubts := doubt(model, result, first, measured, rotated="rotation" in steps)):
        notes.append(doubts)
        warn(doubts)
    return result


def quantize_tensor(
    x: Tensor, spec: QSpec | str, *, calibrator: str | None = None, options: Any = None, name: str = "tensor"
) -> QTensor:
    """Quantize one tensor, rounding to nearest.

    Args:
        x: Floating tensor of any shape.
        spec: Such as ``"int8/channel/sym"``.
        calibrator: How ranges are chosen, a file of :mod:`fewbit.calibrate`; None: ``minmax`` from 8 bits on, ``mse``
            below.
        options: The calibrator's ``Options``.
        name: The tensor's name in errors.

    Raises:
        FewbitError: NaN, infinity or no values; an unknown spec or calibrator.
    """
    return rtn.quantize_weight(x, as_spec(spec), rtn.Options(calibrator, options), name)


def _quantize_layers(
    work: nn.Module,
    plans: list[LayerPlan],
    batches: Iterable[Any] | None,
    settings: Settings,
    progress: Progress | None,
    means: Mapping[str, InputMean],
) -> tuple[nn.Module, list[str]]:
    """Swap the planned layers: block after block where weights are rounded with data and the model has blocks, else all
    at once on one pass over the data. ``means`` go before those that the data gives."""
    if batches is not None and settings.needs_data and has_blocks(work):
        return work, quantize_blocks(work, plans, batches, settings, progress)
    chosen, recipe = [plan for plan in plans if plan.scheme is not None], settings.recipe
    statistics = new_statistics(chosen, recipe, settings.bias_correction and batches is not None)
    _collect(work, statistics, batches, recipe, progress)
    for name in means.keys() & statistics.keys():
        statistics[name].mean = means[name]
    ranges, notes = choose(work, chosen, statistics, batches, progress) if recipe.calibrator == "best" else ({}, [])
    inputs = {plan.name: solve_input(plan, statistics[plan.name], recipe, ranges.get(plan.name)) for plan in chosen}
    if batches is not None and settings.rounding.NEEDS:
        raise FewbitError(
            f"{settings.algorithm} rounds weights block by block, and fewbit finds no blocks, such as a transformer's "
            "layers, in this model: use rtn or hqq (convolutional networks: a scheme with integer activations, W4A8)"
        )
    weights = _round_weights(work, chosen, settings.rounding, recipe, progress)
    result, corrected = build_layers(work, chosen, weights, inputs, statistics)
    return result, [*notes, *_told(weights, corrected), *_wide_scales(chosen, weights)]


def _told(weights: dict[str, tuple[Tensor, QTensor]], corrected: int) -> list[str]:
    """Notes on what was done to many layers."""
    notes = [f"the biases of {corrected} layers were corrected"] if corrected else []
    padded = {name: codes.padding for name, (_, codes) in weights.items() if codes.padding}
    if padded:
        most = max(padded, key=lambda name: padded[name])
        notes.append(
            f"the last group of each row is padded in {len(padded)} layers, {sum(padded.values())} values in all "
            f"(most in {most}: {padded[most]})"
        )
    return notes


def _wide_scales(plans: list[LayerPlan], weights: dict[str, tuple[Tensor, QTensor]]) -> list[str]:
    """A note on the layers whose scales do not fit the type that the plan gave them."""
    wide = [
        p.name
        for p in plans
        if p.scheme is not None and weights[p.name][1].spec.scale_type != p.scheme.weights.scale_type
    ]
    return [f"the scales of {', '.join(wide)} are stored as float32, as 16 bits do not hold them"] if wide else []


def _collect(
    model: nn.Module,
    statistics: dict[str, LayerStatistics],
    batches: Iterable[Any] | None,
    recipe: Recipe,
    progress: Progress | None,
) -> None:
    """One pass over the data for all statistics of all layers.

    Raises:
        FewbitError: There is no data and a layer needs it.
    """
    needs_data = any(statistic.range_statistic is not None for statistic in statistics.values())
    if batches is None and needs_data:
        raise FewbitError(
            f"recipe {recipe.scheme} has static activations; pass calibration data, or use a -dynamic scheme"
        )
    if batches is not None:
        collect(model, statistics, batches, progress)


def _round_weights(
    model: nn.Module, plans: list[LayerPlan], rounding: Any, recipe: Recipe, progress: Progress | None
) -> dict[str, tuple[Tensor, QTensor]]:
    """The float matrix and its codes for each layer; tied layers are rounded once."""
    done: dict[str, tuple[Tensor, QTensor]] = {}
    by_parameter: dict[tuple[object, ...], tuple[Tensor, QTensor]] = {}
    for step, plan in enumerate(plans, 1):
        assert plan.scheme is not None
        module = model.get_submodule(plan.name)
        key = (*kinds.matrix_key(module), plan.scheme.weights.text)
        if key not in by_parameter:
            matrix = kinds.weight_matrix(module)
            options = options_of(rounding, recipe)
            spec = fitting_spec(matrix, plan.scheme.weights)
            codes = rounding.quantize_weight(matrix, spec, options, f"the weight of {plan.name}")
            by_parameter[key] = (matrix, codes)
        done[plan.name] = by_parameter[key]
        if progress is not None:
            progress("quantize", step, len(plans))
    return done
