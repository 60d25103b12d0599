"""Static quantization: activations with fixed quantizers, weights as codes, biases on the accumulator's scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewbit.numbers import affine
from fewbit.numbers.granularity import PerChannel
from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph import qdq
from fewbit.onnxgraph.codes import Codes
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.placement import Placement, carries
from fewbit.onnxgraph.targets import Target


def write_static(
    model: Any,
    placement: Placement,
    target: Target,
    activations: Mapping[str, Codes],
    weights: Mapping[str, QTensor],
    biases: Mapping[str, Tensor],
) -> None:
    """Put all quantizers into a graph, in place.

    Args:
        model: The simplified float model that the placement was made for.
        placement: Where quantizers stand.
        target: The runtime's rules.
        activations: By group (the first tensor of those that share).
        weights: Codes of each layer's matrix ``[out, K]``, by layer name.
        biases: float ``[out]`` by layer name, for layers that have one.
    """
    graph = model.graph
    for layer in placement.layers:
        source = layer.node.inputs[0].name
        scale = activations[placement.group[source]].scale if source in placement.group else None
        _write_layer(graph, layer, weights[layer.name], biases.get(layer.name), scale if target.bias_codes else None)
    _write_activations(graph, placement, target, activations)
    qdq.drop_unused(graph)


def _write_activations(graph: Any, placement: Placement, target: Target, activations: Mapping[str, Codes]) -> None:
    coded = {id(value) for value in placement.coded.values()}

    def on_integers(node: Any) -> bool:
        if carries(node, target):
            return any(id(output) in coded for output in node.outputs)
        return node.name in placement.nodes

    functions = {id(f.outputs[0]): (v, f) for v, f in _absorbable(graph, placement)}
    shared: dict[str, Any] = {}
    for name, value in placement.coded.items():
        group = placement.group[name]
        codes = activations[group]
        if id(value) in functions:
            source, function = functions[id(value)]
            seen = on_integers(source.producer()) or _only_as_codes(value, on_integers)
            if target.absorbs and seen and qdq.absorb(graph, source, function, codes):
                value = source
        producer = value.producer()
        made = producer is not None and (on_integers(producer) or _function_of_integers(producer, on_integers))
        shared[group] = qdq.insert_activation(graph, value, codes, on_integers, made, shared.get(group))


def _only_as_codes(value: Any, on_integers: Any) -> bool:
    """Whether all that reads a tensor which is made in float computes on integers: others would read what it was
    before the function that its codes stand for."""
    return not value.is_graph_output() and all(on_integers(use.node) for use in value.uses())


def _function_of_integers(node: Any, on_integers: Any) -> bool:
    """A Relu or Clip that stayed, behind a node that computes on integers."""
    source = node.inputs[0].producer() if node.op_type in ("Relu", "Clip") and node.inputs else None
    return source is not None and on_integers(source)


def _absorbable(graph: Any, placement: Placement) -> list[tuple[Any, Any]]:
    values = {value.name: value for node in graph for value in node.outputs}
    return [(values[name], function) for name, function in placement.absorbed.items()]


def _write_layer(graph: Any, layer: Layer, tensor: QTensor, bias: Tensor | None, input_scale: float | None) -> None:
    if layer.kind == "MatMul" and bias is not None:  # what is added behind it stays in float
        qdq.replace_bias(graph, layer, bias)
        bias = None
    if bias is not None and input_scale is not None:
        scales = _each_output(layer, tensor.scale)
        wide = qdq.wide_enough(bias, input_scale, scales)
        if not torch.equal(wide, scales.expand(len(bias))):
            rows = tensor.shape[0]  # the groups of a transposed convolution share them
            tensor = _requantized(tensor, wide.reshape(-1, rows).amax(0))
    name = layer.weight.name
    qdq.insert_constant(graph, layer.node, 1, in_file(layer, tensor), _scale_axis(layer, tensor), name)
    if bias is None:
        return
    if input_scale is not None and (layer.kind != "Gemm" or tensor.scale.dim() == 1 or tensor.scale.numel() == 1):
        name = f"{layer.name}.bias" if layer.bias is None else layer.bias.name
        qdq.insert_bias(graph, layer.node, qdq.bias_codes(bias, input_scale, _each_output(layer, tensor.scale)), name)
    else:
        qdq.replace_bias(graph, layer, bias)


def in_file(layer: Layer, tensor: QTensor) -> QTensor:
    """Codes of a matrix ``[out, K]`` in the layout of the file."""
    codes = layer.in_file(tensor.codes)
    return replace(tensor, codes=codes, shape=tuple(codes.shape))


def _each_output(layer: Layer, scale: Tensor) -> Tensor:
    """The scale of each output channel: a transposed convolution's rows (``[out/g]``) are those of every group."""
    return scale.repeat(layer.groups) if layer.kind == "ConvTranspose" and scale.dim() == 1 else scale


def _scale_axis(layer: Layer, tensor: QTensor) -> int | None:
    return None if tensor.scale.dim() == 0 else layer.axis


def _requantized(tensor: QTensor, scale: Tensor) -> QTensor:
    """The same values at wider scales, one a channel."""
    spec = replace(tensor.spec, granularity=PerChannel(0))
    return affine.quantize(tensor.dequantize(), spec, scale=scale, zero_point=None)
