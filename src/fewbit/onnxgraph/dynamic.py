"""Dynamic quantization: inputs get their range when the model runs.

``x → DynamicQuantizeLinear → MatMulInteger → ·(s_x · s_w) → + bias``, the form that ONNX Runtime fuses to one node
(DynamicQuantizeMatMul). The range is that of the whole input tensor, uint8 with a zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph.constants import add_constant, fresh_name
from fewbit.onnxgraph.layers import Layer


class DynamicInputs:
    """The quantized inputs of a graph's layers; layers that read one tensor share its codes."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._made: dict[str, list[Any]] = {}

    def codes(self, layer: Layer) -> list[Any]:
        """uint8 codes, scale and zero point of a layer's input."""
        value = layer.node.inputs[0]
        if value.name not in self._made:
            node = _node(self.graph, "DynamicQuantizeLinear", [value], value.name, 3)
            self.graph.insert_before(layer.node, node)
            self._made[value.name] = list(node.outputs)
        return self._made[value.name]


def write_layer(graph: Any, layer: Layer, tensor: QTensor, bias: Tensor | None, inputs: DynamicInputs) -> Any:
    """Replace a MatMul or Gemm by integer nodes, in place.

    Args:
        graph: The graph.
        layer: The layer.
        tensor: int8 codes ``[out, K]`` with one scale a row or one in all, symmetric.
        bias: float32 ``[out]``, or None.
        inputs: The graph's quantized inputs.

    Returns:
        The constant that the bias became, or None.
    """
    name = layer.weight.name
    codes, scale, zero = inputs.codes(layer)
    weight = add_constant(graph, f"{name}_quantized", tensor.codes.T.contiguous().numpy(), ir.DataType.INT8)
    scales = add_constant(graph, f"{name}_scale", tensor.scale.numpy().astype(np.float32))
    zeros = add_constant(graph, f"{name}_zero_point", np.zeros(tuple(tensor.scale.shape)), ir.DataType.INT8)
    product = _node(graph, "MatMulInteger", [codes, weight, zero, zeros], layer.name)
    wide = _node(graph, "Cast", [product.outputs[0]], f"{layer.name}_float", attributes=[_to_float()])
    factor = _node(graph, "Mul", [scale, scales], f"{layer.name}_scales")
    scaled = _node(graph, "Mul", [wide.outputs[0], factor.outputs[0]], f"{layer.name}_scaled")
    made, offset = [product, wide, factor, scaled], None
    if bias is not None:
        offset = add_constant(graph, f"{layer.name}_bias", bias.numpy().astype(np.float32))
        made.append(_node(graph, "Add", [scaled.outputs[0], offset], f"{layer.name}_biased"))
    replace_node(graph, layer.node, made)
    return offset


def replace_node(graph: Any, node: Any, made: list[Any]) -> None:
    """Put nodes in the place of one; the last one's output takes over its name and readers."""
    graph.insert_before(node, made)
    old, new = node.outputs[0], made[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    name, old.name = old.name, None
    new.name = name


def _node(graph: Any, kind: str, inputs: list[Any], name: str, outputs: int = 1, attributes: Any = ()) -> Any:
    node = ir.Node("", kind, inputs, list(attributes), num_outputs=outputs, name=fresh_name(graph, f"{name}_{kind}"))
    for index, value in enumerate(node.outputs):
        value.name = fresh_name(graph, f"{name}_{kind}_{index}" if outputs > 1 else f"{name}_{kind}_output")
    return node


def _to_float() -> Any:
    return ir.AttrInt64("to", int(ir.DataType.FLOAT))
