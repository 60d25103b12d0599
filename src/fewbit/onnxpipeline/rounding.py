"""A layer's codes and its bias, by what the data told of the layer's input; the same for every kind of scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewbit import algorithms
from fewbit.errors import FewbitError
from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph import drift, qdq
from fewbit.onnxgraph.grams import round_groups
from fewbit.onnxgraph.layers import Layer
from fewbit.recipe import LayerPlan

if TYPE_CHECKING:
    from fewbit.onnxpipeline.quantize import Job


def rounded(job: Job, plan: LayerPlan) -> tuple[QTensor, Tensor | None]:
    """Codes of a layer's matrix ``[out, K]``, and its bias, float32 ``[out]``, moved by what rounding does to the mean
    output where the data told the mean input."""
    layer = job.layers[plan.name]
    matrix, codes = _round_weight(job, plan)
    bias, seen = layer_bias(layer), job.inputs
    if layer.kind == "MatMul" and (seen is None or layer.name not in seen.corrected):
        return codes, None
    shift = None if seen is None or seen.means is None else seen.means.correction(layer, matrix, codes)
    if shift is not None:
        bias = shift if bias is None else bias.double() + shift
    return codes, None if bias is None else bias.float()


def _round_weight(job: Job, plan: LayerPlan) -> tuple[Tensor, QTensor]:
    """A layer's float matrix and its codes."""
    assert plan.scheme is not None
    layer = job.layers[plan.name]
    grams = None if job.inputs is None else job.inputs.grams
    if grams is not None and layer.groups > 1 and (codes := round_groups(layer, plan.scheme.weights, grams)):
        return layer.matrix(), codes
    statistics = None if grams is None else grams.statistics(layer)
    rounding = algorithms.get(job.algorithm)
    if grams is not None and statistics is None and job.wants_grams():
        rounding = algorithms.get("rtn")  # no matrix of that layer's input
        job.nearest.append(plan.name)
    matrix = layer.matrix()
    options = rounding.Options()
    if hasattr(options, "calibrator"):
        options = replace(options, calibrator=job.recipe.weight_calibrator)
    name = f"the weight of {plan.name}"
    return matrix, rounding.quantize_weight(matrix, plan.scheme.weights, options, name, statistics)


def layer_bias(layer: Layer) -> Tensor | None:
    """A layer's bias, or what is added to a MatMul, as float32 ``[out]``; or None."""
    if layer.offset is None:
        return None
    array = torch.from_numpy(np.array(layer.offset.const_value.numpy(), dtype=np.float32)).reshape(-1)
    rows = int(layer.weight.const_value.shape[layer.axis]) * (layer.groups if layer.kind == "ConvTranspose" else 1)
    return array.expand(rows).clone() if array.numel() == 1 else array


class Biases:
    """Where float biases of layers stand in the graph that is written, to be set once more at the end.

    A MatMul's is a constant that is added behind it and stays there; the biases of other products move to wherever
    their new nodes want them.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.constants: dict[str, Tensor] = {}

    def outside(self, job: Job, layer: Layer, bias: Tensor | None) -> Tensor | None:
        """What a new node must add itself, before it takes the layer's place."""
        if layer.kind != "MatMul":
            return bias
        if bias is not None:
            self.note(layer, bias, qdq.replace_bias(job.model.graph, layer, bias))
        return None

    def note(self, layer: Layer, bias: Tensor | None, value: Any) -> None:
        """A bias and the constant that it became."""
        if bias is not None and value is not None:
            self.values[layer.name], self.constants[layer.name] = value, bias

    def answer(self, job: Job) -> None:
        """Move them by what the written network really computes; see :mod:`fewbit.onnxgraph.drift`."""
        if job.inputs is None or job.inputs.means is None or not self.values:
            return
        layers = [job.inputs.layers[name] for name in self.values]
        batches = job.inputs.data.batches
        try:
            drift.corrected(
                job.inputs.model,
                job.model,
                layers,
                self.constants,
                batches,
                job.told_progress,
                constants=self.values,
            )
        except FewbitError as error:  # a node that only the target knows, say; the biases answer for the means at least
            job.notes.append(
                f"biases were corrected for each layer by itself, as the written graph did not run: {error}"
            )
