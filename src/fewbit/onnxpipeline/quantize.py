"""Quantize an ONNX file: the whole story, top to bottom.

read → upgrade → simplify → plan (recipe) → equalize → place quantizers → calibrate → round weights, correct biases →
write
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbit import algorithms, calibrate
from fewbit.atomic import check_apart
from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.evaluate.verdict import warn
from fewbit.numbers.affine import check_finite
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import file
from fewbit.onnxpipeline.inputs import Inputs
from fewbit.onnxpipeline.result import OnnxLayer, OnnxResult
from fewbit.recipe import LayerPlan, Recipe, Scheme, as_recipe

if TYPE_CHECKING:
    from fewbit.onnxpipeline.faster import Region


@dataclass(frozen=True)
class Settings:
    """How a file is quantized.

    Attributes:
        target: The runtime it is for: ``onnxruntime``, ``openvino`` or ``tensorrt``.
        calibrator: Replaces the recipe's choice of activation ranges (of weight ranges, where activations are float).
        algorithm: How weights are rounded, a file of :mod:`fewbit.algorithms`, with ``equalize+`` before it to even out
            weights across layers first; ``"auto"`` is ``gptq`` where there is data, and else to nearest.
        bias_correction: Correct biases for the mean shift that rounding the weights causes, where there is data.
        equalize: Even out the channels of linear streams first, where activations are static.
        only_if_faster: Measure on the target, and leave in float each region that integers do not speed up.
        overwrite: Replace the output if it exists.
    """

    target: str = "onnxruntime"
    calibrator: str | None = None
    algorithm: str = "auto"
    bias_correction: bool = True
    equalize: bool = True
    only_if_faster: bool = False
    overwrite: bool = False


def quantize_file(
    source: str | Path,
    recipe: Recipe | str | Path,
    data: Iterable[Any] | None,
    output: str | Path,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> OnnxResult:
    """Quantize one ONNX file to another.

    Args:
        source: The float model, of opset 11 or newer.
        recipe: A scheme, a recipe, or a TOML file. Rules match node names and types (``Conv``, ``MatMul``, ``Gemm``).
        data: Batches: arrays or tensors for the first input, or mappings by input name; gone through once. Needed by
            static activations; of others it makes better codes and biases.
        output: The file to write.
        settings: See :class:`Settings`.
        progress: Called with (stage, steps done, steps in all).

    Raises:
        FewbitError: The file, the recipe or the data cannot be used; the message names the node or tensor.
        MissingExtraError: A package of fewbit[onnx] is not installed.
    """
    file.check_installed()
    settings = settings or Settings()
    recipe = _with_calibrator(as_recipe(recipe), settings.calibrator)
    source, output = Path(source), Path(output)
    check_apart(output, source)
    if output.exists() and not settings.overwrite:
        raise FewbitError(f"{output} exists already; choose another output or ask to overwrite it")
    model = file.read(source)
    for data_file in file.external_files(model, source):
        check_apart(output, data_file)
        check_apart(file.data_path(output), data_file)
    try:
        job = Job(model, recipe, settings, progress, with_data=data is not None)
        first, data = peeked(data) if data is not None else ([], None)
        job.run(data)
    except FewbitError as error:
        raise FewbitError(f"{source}: {error}") from error
    file.write(job.model, output, overwrite=settings.overwrite)
    if first and file.size(source) < file.INLINE_LIMIT:  # larger ones may not fit a second time
        job.notes += _doubts(source, output, first[0], settings)
    return OnnxResult(
        output,
        settings.target,
        tuple(job.told),
        job.skipped,
        file.size(source),
        file.size(output),
        tuple(job.notes),
        tuple(dataclasses.asdict(region) for region in job.regions),
    )


def _doubts(source: Path, output: Path, batch: Any, settings: Settings) -> list[str]:
    """A sentence, which the user is also warned with, if hardly anything is left of the model's outputs."""
    from fewbit.evaluate.onnx_check import doubt

    try:
        found = doubt(source, output, batch, as_written=settings.target != "onnxruntime")
    except FewbitError as error:  # an operator that only the target knows, say: what was asked for is done
        return [f"the outputs were not compared with the float model's: {error}"]
    if found is None:
        return []
    warn(found)
    return [found]


# What would be another algorithm in a file, where each weight is rounded by itself.
_OF_BLOCKS = {
    "autoround": "learns block by block in torch",
    "brecq": "learns block by block in torch",
    "smoothquant": "moves scales between the layers of a torch model",
}


class Job:
    """One model on its way; :meth:`run` changes it in place.

    Attributes:
        model: The model.
        told: What was quantized.
        skipped: What was not, and why.
        notes: For the user.
        regions: What was measured for ``only_if_faster``.
        inputs: What the data told of the layers' inputs; None without.
        nearest: Layers that were rounded to nearest for want of that.
    """

    def __init__(
        self, model: Any, recipe: Recipe, settings: Settings, progress: Progress | None, *, with_data: bool
    ) -> None:
        from fewbit.onnxgraph import targets

        self.model, self.recipe, self.settings, self.progress = model, recipe, settings, progress
        self.evens_out, self.algorithm = split_algorithm(settings.algorithm, with_data)
        self.target = targets.get(settings.target)
        self.told: list[OnnxLayer] = []
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.regions: list[Region] = []
        self.inputs: Inputs | None = None
        self.nearest: list[str] = []

    def run(self, data: Iterable[Any] | None) -> None:
        """Prepare the graph, plan, and write codes into it by the scheme's kind."""
        if file.is_quantized(self.model):
            raise FewbitError("the model is quantized already; quantize the float model")
        self.chosen = [plan for plan in self.prepare() if plan.scheme is not None]
        kinds = {_kind(plan.scheme) for plan in self.chosen if plan.scheme is not None}
        if "static" in kinds and data is None:
            raise FewbitError(
                f"recipe {self.recipe.scheme} has static activations, which need calibration data; "
                "pass data, or use a -dynamic scheme"
            )
        if kinds and "static" not in kinds and data is not None:
            self.look(data)
        for kind in [kind for kind in ("static", "dynamic", "weights") if kind in kinds]:  # the first wants it in float
            self._quantize(kind, [p for p in self.chosen if p.scheme is not None and _kind(p.scheme) == kind], data)
        if not kinds:
            raise FewbitError("the recipe leaves every layer in float")
        if self.settings.only_if_faster and "static" not in kinds:
            raise FewbitError("only-if-faster measures static activations; use a scheme such as W8A8")
        self._tell_inputs()

    def look(self, data: Iterable[Any]) -> None:
        """Go through the data for what rounding and biases make of the layers' inputs, and on with a copy of the graph,
        so that the float one stays at hand."""
        if not self.wants_grams() and not self.settings.bias_correction:
            self.notes.append(
                f"{self.algorithm} rounds without data, and biases are not corrected: the data served to check the "
                "outputs alone"
            )
            return
        inputs = Inputs.wanted(self, [self.layers[plan.name] for plan in self.chosen], data)
        inputs.observe({}, self.progress)
        self.inputs = inputs
        self.replace_model(self.model.clone())

    def _tell_inputs(self) -> None:
        """What the data was used for."""
        count = 0
        if self.inputs is not None and self.inputs.means is not None:
            count = sum(self.inputs.means.answers(self.inputs.layers[one.name]) for one in self.told)
        if count:
            layers = "bias of 1 layer was" if count == 1 else f"biases of {count} layers were"
            self.notes.append(f"the {layers} corrected")
        if thin := self._thin():
            self.notes.append(
                f"{', '.join(thin)}: the data has less than two rows for each input there, which {self.algorithm} may "
                "fit by chance: give more samples, or take rtn, which does not look at them"
            )
        if self.nearest:
            self.notes.append(
                f"rounded to nearest, as {self.algorithm} has no inputs of such layers: {', '.join(self.nearest)}"
            )

    def _thin(self) -> list[str]:
        """Layers whose inputs tell little; of static activations, whose error is larger, that is no matter."""
        seen = self.inputs
        if seen is None or seen.grams is None or _kind(self.recipe.default()) == "static":
            return []
        return [one.name for one in self.told if seen.grams.is_thin(seen.layers[one.name])]

    def prepare(self) -> list[LayerPlan]:
        """Bring the graph to the form that is quantized, and plan its layers."""
        from fewbit.onnxgraph import finite, layers
        from fewbit.onnxgraph.cross_layer import even_out
        from fewbit.onnxgraph.simplify import simplify
        from fewbit.onnxgraph.upgrade import raise_opset

        finite.check(self.model)
        opset = needed_opset(self.recipe, self.target.name)
        self.notes += raise_opset(self.model, opset)
        self.notes += simplify(self.model)
        found = layers.find(self.model)
        for node in self.model.graph:
            if node.op_type in layers.KINDS and (why := layers.why_not(node)) is not None:
                self.skipped[node.name] = why
        for inner in self.model.graph.subgraphs():
            for node in inner:
                if node.op_type in layers.KINDS:
                    self.skipped[node.name] = "inside an If, Loop or Scan, whose graphs stay in float"
        if not found:
            raise FewbitError(layers.why_none(self.skipped))
        if self.evens_out:
            self.notes.append(f"the channels between {even_out(self.model, found)} pairs of layers were evened out")
        plans = self.recipe.plan((layer.name, layer.kind) for layer in found)
        self.layers = {layer.name: layer for layer in found}
        self.skipped |= {plan.name: plan.reason for plan in plans if plan.scheme is None}
        for plan in plans:
            if plan.scheme is not None:
                check_finite(self.layers[plan.name].matrix(), f"the weight of {plan.name}")
        return plans

    def _quantize(self, kind: str, plans: list[LayerPlan], data: Iterable[Any] | None) -> None:
        from fewbit.onnxpipeline import dynamic_job, static_job, weights_job

        jobs = {"static": static_job.run, "dynamic": dynamic_job.run, "weights": weights_job.run}
        jobs[kind](self, plans, data)

    def replace_model(self, model: Any) -> None:
        """Go on with another model, in which the layers that are still to be done have their names."""
        from fewbit.onnxgraph import layers

        self.model = model
        self.layers |= {layer.name: layer for layer in layers.find(model)}

    def wants_grams(self) -> bool:
        """Whether the algorithm looks at the layers' inputs."""
        return "gram" in algorithms.get(self.algorithm).NEEDS

    def tell(self, plan: LayerPlan, codes: QTensor, input_spec: str, written: int, bias_too: bool) -> None:
        """Note what was done to a layer.

        Args:
            plan: Of the layer.
            codes: Its weight.
            input_spec: How its input is quantized, or ``float``.
            written: Bytes of its constants in the file, where codes may be wider and rows longer.
            bias_too: Whether its bias is one of them.
        """
        layer = self.layers[plan.name]
        bias = 0 if layer.bias is None else int(np.prod(layer.bias.const_value.shape))
        count = int(np.prod(codes.shape))
        self.told.append(
            OnnxLayer(
                plan.name,
                plan.kind,
                str(codes.spec),
                input_spec,
                count + bias,
                4 * (count + bias),
                written + (0 if bias_too else 4 * bias),
            )
        )

    def told_progress(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)


def split_algorithm(name: str, data: bool) -> tuple[bool, str]:
    """Whether weights are evened out across layers first, and what rounds them.

    Args:
        name: As the user named it: an algorithm, ``"auto"``, ``"equalize"`` or ``"equalize+…"``.
        data: Whether there is some.

    Raises:
        FewbitError: There is no such algorithm, or it cannot stand there.
    """
    first, *rest = name.split("+")
    if first != "equalize" and rest:
        raise FewbitError(f"{name!r}: of an ONNX file only equalize can stand before a +")
    if len(rest) > 1:
        raise FewbitError(f"{name!r}: one algorithm rounds the weights")
    rounding = name if first != "equalize" else rest[0] if rest else "auto"
    chosen = rounding if rounding != "auto" else "gptq" if data else "rtn"
    algorithms.get(chosen)
    if chosen in _OF_BLOCKS:
        raise FewbitError(
            f"{chosen} {_OF_BLOCKS[chosen]}, and is not there for ONNX files: take gptq, adaround or best"
        )
    return first == "equalize", chosen


def needed_opset(recipe: Recipe, target: str) -> int:
    """The oldest opset that can hold what the recipe asks for."""
    from fewbit.onnxgraph.upgrade import BLOCKED_OPSET, PER_CHANNEL_OPSET

    schemes = [recipe.default(), *(rule.apply(recipe.default()) for rule in recipe.rules if not rule.skip)]
    blocks = any(scheme.activations is None and isinstance(scheme.weights.granularity, PerGroup) for scheme in schemes)
    return BLOCKED_OPSET if blocks and target != "onnxruntime" else PER_CHANNEL_OPSET


def peeked(data: Iterable[Any], count: int = 1) -> tuple[list[Any], Iterable[Any]]:
    """The first batches, and all batches with them."""
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return list(islice(iter(data), count)), data
    iterator = iter(data)
    first = list(islice(iterator, count))
    return first, chain(first, iterator)


def layer_weights(spec: QSpec, name: str) -> QSpec:
    """The spec of a weight behind coded activations.

    Raises:
        FewbitError: No runtime multiplies such codes.
    """
    grain = spec.granularity
    if not spec.format.is_integer or spec.bits > 8 or not spec.symmetric or spec.format.qmin >= 0:
        raise FewbitError(f"{name}: weights beside coded activations are signed symmetric integers, not {spec}")
    if not (grain == PerChannel(0) or isinstance(grain, PerTensor)):
        raise FewbitError(f"{name}: weights beside coded activations have one scale a channel or a tensor, not {spec}")
    return spec


def _kind(scheme: Scheme) -> str:
    if scheme.activations is None:
        return "weights"
    return "dynamic" if scheme.dynamic else "static"


def _with_calibrator(recipe: Recipe, calibrator: str | None) -> Recipe:
    """The recipe with another choice of ranges, whose names exist."""
    if calibrator is not None:
        calibrate.get(calibrator)
        static = _kind(recipe.default()) == "static"
        recipe = replace(recipe, calibrator=calibrator) if static else replace(recipe, weight_calibrator=calibrator)
    for name in (recipe.calibrator, recipe.weight_calibrator):
        if name is not None:
            calibrate.get(name)
    return recipe
