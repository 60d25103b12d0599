"""Write codes into a graph as QuantizeLinear and DequantizeLinear nodes (ONNX opset 13; int4 and blocks from 21).

The rules: a coded activation is followed by one Q and one DQ. A node that computes on integers reads the DQ; others
read the float tensor while there is one (the producer computes in float), else the DQ. A weight is its codes and a
DQ; a bias is int32 at ``s_x · s_w`` (arXiv 1712.05877, equation 5), so that it adds to the accumulator as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fewbit.numbers.granularity import PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph.codes import Codes
from fewbit.onnxgraph.constants import add_constant, array_of, fresh_name
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.placement import clip_bounds


@dataclass(frozen=True)
class BiasCodes:
    """A bias on the accumulator's scale: int32 codes ``[out]`` and float32 scales ``[out]``."""

    codes: np.ndarray
    scale: np.ndarray


def insert_activation(
    graph: Any,
    value: Any,
    codes: Codes,
    on_integers: Callable[[Any], bool],
    made_on_integers: bool,
    shared: Any = None,
) -> Any:
    """Put Q and DQ behind a tensor.

    Args:
        graph: The graph, changed in place.
        value: The tensor.
        codes: Its quantizer.
        on_integers: Whether a node that reads the tensor computes on integers.
        made_on_integers: Whether the node that makes the tensor does, so that no float tensor will be there.
        shared: Scale and zero point constants of the same group, if there are some already.

    Returns:
        The scale and zero point constants.
    """
    scale, zero = shared or _parameters(graph, value.name, codes)
    readers = [use for use in value.uses() if made_on_integers or on_integers(use.node)]
    outputs = [i for i, v in enumerate(graph.outputs) if v is value] if made_on_integers else []
    name = value.name
    coded = _value(graph, f"{name}_quantized", zero.dtype, value.shape)
    decoded = _value(graph, f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
    quantize = ir.Node("", "QuantizeLinear", [value, scale, zero], outputs=[coded], name=f"{name}_QuantizeLinear")
    dequantize = ir.Node(
        "", "DequantizeLinear", [coded, scale, zero], outputs=[decoded], name=f"{name}_DequantizeLinear"
    )
    for use in readers:
        use.node.replace_input_with(use.idx, decoded)
    for index in outputs:  # the graph's output keeps its name
        graph.outputs[index] = decoded
    if outputs:
        value.name = None
        decoded.name = name
        value.name = fresh_name(graph, f"{name}_float")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return scale, zero


def insert_constant(
    graph: Any, node: Any, index: int, tensor: QTensor, axis: int | None, name: str, *, packed: bool = False
) -> None:
    """Replace one input of a node by codes and their DQ.

    Args:
        graph: The graph, changed in place.
        node: The node.
        index: Which input.
        tensor: Codes in the layout of the file; its scale has one value, or one for each index of ``axis``.
        axis: The axis of the scales; None for one scale.
        name: The constant's name.
        packed: Use the 4-bit types of opset 21.
    """
    kind = _dtype(tensor.spec.format.name, tensor.spec.bits, packed)
    scale = tensor.scale.numpy().astype(np.float32)
    zero = np.zeros(scale.shape, np.int32) if tensor.zero_point is None else tensor.zero_point.numpy()
    inputs = [
        add_constant(graph, f"{name}_quantized", tensor.codes.numpy(), kind),
        add_constant(graph, f"{name}_scale", scale),
        add_constant(graph, f"{name}_zero_point", zero, kind),
    ]
    _dequantize_into(graph, node, index, inputs, {} if axis is None else {"axis": axis}, name)


def insert_blocks(graph: Any, layer: Layer, tensor: QTensor, name: str) -> None:
    """Replace a MatMul's or Gemm's weight by blocked codes and their DQ (opset 21); groups lie along K."""
    assert isinstance(tensor.spec.granularity, PerGroup)
    columns = tensor.shape[1]
    kind = _dtype(tensor.spec.format.name, tensor.spec.bits, packed=True)
    flip = layer.axis == 1
    parts = [tensor.codes[:, :columns], tensor.scale, tensor.zero_point]
    arrays = [None if p is None else (p.T if flip else p).contiguous().numpy() for p in parts]
    zero = np.zeros(arrays[1].shape, np.int32) if arrays[2] is None else arrays[2]  # type: ignore[union-attr]
    inputs = [
        add_constant(graph, f"{name}_quantized", arrays[0], kind),  # type: ignore[arg-type]
        add_constant(graph, f"{name}_scale", arrays[1]),  # type: ignore[arg-type]
        add_constant(graph, f"{name}_zero_point", zero, kind),
    ]
    attributes = {"axis": 0 if flip else 1, "block_size": tensor.spec.granularity.size}
    _dequantize_into(graph, layer.node, 1, inputs, attributes, name)


def insert_bias(graph: Any, node: Any, bias: BiasCodes, name: str) -> None:
    """Replace a node's bias by int32 codes and their DQ."""
    inputs = [
        add_constant(graph, f"{name}_quantized", bias.codes.astype(np.int32)),
        add_constant(graph, f"{name}_scale", bias.scale.astype(np.float32)),
        add_constant(graph, f"{name}_zero_point", np.zeros(bias.scale.shape, np.int32)),
    ]
    _dequantize_into(graph, node, 2, inputs, {"axis": 0}, name)


def replace_bias(graph: Any, layer: Layer, bias: torch.Tensor) -> Any:
    """Give a layer a float bias ``[out]`` of its own (others may read the old one), which is returned.

    A MatMul's goes into the addition behind it, which must be there.
    """
    name = f"{layer.name}.bias" if layer.offset is None else layer.offset.name
    assert layer.bias_at is not None
    node, index = layer.bias_at
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    value = add_constant(graph, name, bias.float().numpy())
    node.replace_input_with(index, value)
    return value


def bias_codes(bias: torch.Tensor, input_scale: float, weight_scale: torch.Tensor) -> BiasCodes:
    """Round a bias ``[out]`` to int32 at ``s_x · s_w``.

    Raises:
        OverflowError: int32 does not hold it; widen the weight's scale with :func:`wide_enough` first.
    """
    scale = (torch.tensor(input_scale, dtype=torch.float32) * weight_scale.float()).expand(len(bias)).contiguous()
    codes = (bias.double() / scale.double()).round()
    if bool((codes.abs() > np.iinfo(np.int32).max).any()):
        raise OverflowError("a bias code is beyond int32")
    return BiasCodes(codes.to(torch.int32).numpy(), scale.numpy())


def wide_enough(bias: torch.Tensor, input_scale: float, weight_scale: torch.Tensor) -> torch.Tensor:
    """Weight scales, widened where the bias would else fill more than half of int32 (a channel of almost no weight).

    The other half is left to the products: runtimes add them to the bias in int32, which wraps around silently.
    """
    least = bias.abs().double() / (input_scale * 2**30)
    return torch.maximum(weight_scale.double().expand(len(bias)), least).float()


def absorb(graph: Any, value: Any, function: Any, codes: Codes) -> bool:
    """Leave out a Relu or Clip where the codes of its output imply it; whether it was left out."""
    bounds = clip_bounds(function)
    if bounds is None or not codes.implies(bounds):
        return False
    gone = function.outputs[0]
    for index, output in enumerate(graph.outputs):
        if output is gone:
            graph.outputs[index] = value
    gone.replace_all_uses_with(value)
    graph.remove(function, safe=True)
    name, gone.name = gone.name, None
    value.name = name
    return True


def drop_unused(graph: Any) -> None:
    """Remove constants that nothing reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)


def _dequantize_into(
    graph: Any, node: Any, index: int, inputs: list[Any], attributes: Mapping[str, Any], name: str
) -> None:
    decoded = _value(graph, f"{name}_dequantized", ir.DataType.FLOAT, inputs[0].shape)
    made = ir.Node(
        "",
        "DequantizeLinear",
        inputs,
        [ir.AttrInt64(key, value) for key, value in attributes.items()],
        outputs=[decoded],
        name=fresh_name(graph, f"{name}_DequantizeLinear"),
    )
    graph.insert_before(node, made)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, decoded)


def _parameters(graph: Any, name: str, codes: Codes) -> tuple[Any, Any]:
    kind = _dtype(codes.spec.format.name, codes.spec.bits)
    scale = add_constant(graph, f"{name}_scale", np.array(codes.scale, np.float32))
    return scale, add_constant(graph, f"{name}_zero_point", np.array(codes.zero_point), kind)


def _value(graph: Any, name: str, dtype: Any, shape: Any) -> Any:
    return ir.Value(name=fresh_name(graph, name), type=ir.TensorType(dtype), shape=shape)


def _dtype(name: str, bits: int, packed: bool = False) -> Any:
    """The ONNX type that holds the codes: 4 bits as such where asked for, up to 8 in a byte, 16 in two."""
    unsigned = name.startswith("uint")
    if packed and bits <= 4:
        return ir.DataType.UINT4 if unsigned else ir.DataType.INT4
    if bits <= 8:
        return ir.DataType.UINT8 if unsigned else ir.DataType.INT8
    return ir.DataType.UINT16 if unsigned else ir.DataType.INT16


def is_float(value: Any) -> bool:
    """Whether a value is float32 and no constant."""
    return array_of(value) is None and value.dtype in (None, ir.DataType.FLOAT)
