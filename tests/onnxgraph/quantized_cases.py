"""Quantized networks for the tests, by the shortest way there is: min-max ranges, weights rounded to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx_cases import as_ir

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe, placement, ranges, static, targets
from fewbit.onnxgraph.simplify import simplify
from fewbit.onnxpipeline.rounding import layer_bias


@dataclass(frozen=True)
class Pair:
    """A float network, simplified; the same with codes; the float one's layers and biases."""

    model: Any
    quantized: Any
    layers: list[Any]
    biases: dict[str, torch.Tensor]


def quantize(
    proto: onnx.ModelProto,
    batches: list[np.ndarray],
    weights: str = "int8/channel/sym",
    target_name: str = "onnxruntime",
) -> Pair:
    """Quantize a network for a target, its layers' matrices by the spec ``weights``."""
    model = as_ir(proto)
    simplify(model)
    target, found = targets.get(target_name), layers.find(model)
    places = placement.place(model, found, target)
    statistics = ranges.new_statistics(places, "minmax", {})
    observe.observe(model, statistics, batches)
    codes = ranges.solve(ranges.merged(places, statistics), "minmax", {}, QSpec.parse(target.activations))
    matrices = {la.name: rtn.quantize_weight(la.matrix(), QSpec.parse(weights)) for la in found}
    biases = {la.name: bias for la in found if (bias := layer_bias(la)) is not None}
    quantized = model.clone()
    there = placement.place(quantized, layers.find(quantized), target)
    static.write_static(quantized, there, target, codes, matrices, biases)
    return Pair(model, quantized, found, biases)
