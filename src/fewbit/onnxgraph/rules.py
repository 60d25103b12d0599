"""Check a quantized graph against the rules that runtimes have for Q/DQ models.

For every target: ``onnx.checker`` passes; every DequantizeLinear reads codes (a constant's, or a QuantizeLinear's);
no Q/DQ pair stands alone, between two nodes that compute in float; a product that has codes on one side has them on
the other.

For TensorRT (10 and 11, explicit quantization): all zero points are 0, scales are positive constants, activations are
int8 with one scale, weights int8 with one scale for each output channel (axis 0; of a transposed convolution 1) or in
all, biases float, and an addition whose sum is coded has codes on the side that no product computes for it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fewbit.errors import require
from fewbit.onnxgraph.constants import array_of, attribute, only_use
from fewbit.onnxgraph.targets import get

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def violations(model: Any, target: str = "onnxruntime") -> list[str]:
    """Every broken rule, one sentence that names the node; empty for a good model.

    Args:
        model: ``onnx_ir.Model``.
        target: Whose rules, besides the general ones.
    """
    rules = get(target)
    found = [*_checker(model), *_pairs(model, rules)]
    for node in model.graph:
        found += _product(node)
        if target == "tensorrt":
            found += _tensorrt(node)
    return found


def _checker(model: Any) -> Iterator[str]:
    onnx = require("onnx", "onnx")
    ir = require("onnx_ir", "onnx")
    try:
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=False)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        yield f"onnx.checker: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def _pairs(model: Any, rules: Any) -> Iterator[str]:
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and array_of(node.inputs[0]) is None:
            source = node.inputs[0].producer()
            if source is None or (source.op_type != "QuantizeLinear" and source.op_type not in rules.carriers):
                yield f"{node.name} reads {node.inputs[0].name}, which is neither a constant nor a QuantizeLinear's"
        if node.op_type == "QuantizeLinear" and not _useful(node, rules):
            yield f"{node.name} and its DequantizeLinear stand alone: no node around them computes on integers"


def _useful(quantize: Any, rules: Any) -> bool:
    """Whether a node before or behind a Q/DQ pair has an integer kernel that uses it."""
    if not _float_only(quantize.inputs[0].producer(), rules):
        return True
    for use in quantize.outputs[0].uses():
        for reader in use.node.outputs[0].uses():
            if not _float_only(reader.node, rules):
                return True
    return False


def _float_only(node: Any, rules: Any) -> bool:
    if node is None:
        return True
    if node.op_type in ("Relu", "Clip"):
        return _float_only(node.inputs[0].producer(), rules)
    return node.op_type not in rules.products | rules.integer | rules.carriers


def _product(node: Any) -> Iterator[str]:
    if node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx"):
        return
    sides = [_decoded(value) for value in node.inputs[:2]]
    weight_only = sides[1] and array_of(node.inputs[1].producer().inputs[0]) is not None
    if sides[0] and not sides[1]:
        yield f"{node.name} ({node.op_type}) has codes on its input and a float weight"
    if sides[0] and weight_only and len(node.inputs) > 2 and node.inputs[2] is not None:
        yield from _bias(node)


def _bias(node: Any) -> Iterator[str]:
    """A coded bias lies on the accumulator's scale."""
    if not _decoded(node.inputs[2]):
        return
    x, w, b = (array_of(value.producer().inputs[1]) for value in node.inputs[:3])
    if w is not None and b is not None and w.ndim and node.op_type == "ConvTranspose":
        w = np.tile(w, attribute(node, "group", 1))  # each group's outputs have the same scales
    if x is None or w is None or b is None or not np.array_equal((x * w).astype(np.float32) * np.ones_like(b), b):
        yield f"{node.name}: the bias has another scale than input times weight"


def _tensorrt(node: Any) -> Iterator[str]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _tensorrt_parameters(node)
    if node.op_type in _PRODUCTS and _decoded(node.inputs[0]):
        if len(node.inputs) > 2 and node.inputs[2] is not None and _decoded(node.inputs[2]):
            yield f"{node.name} has a coded bias; TensorRT takes it in float"
        axis = {"ConvTranspose": 1, "MatMul": 1}.get(node.op_type, 0)
        axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else axis
        weight = node.inputs[1].producer()
        scale = None if weight is None or not _decoded(node.inputs[1]) else array_of(weight.inputs[1])
        if scale is not None and scale.ndim and attribute(weight, "axis", 1) != axis:
            yield f"{node.name} has weight scales on axis {attribute(weight, 'axis', 1)}, not {axis}"
    if node.op_type == "Add" and _coded_behind(node) and all(array_of(v) is None for v in node.inputs):
        free = [value for value in node.inputs if not _decoded(value)]
        if any(not _computed_for(value, node) for value in free) or len(free) > 1:
            yield f"{node.name} adds a residual without Q/DQ on it, so it runs in float"


def _tensorrt_parameters(node: Any) -> Iterator[str]:
    scale = array_of(node.inputs[1])
    if scale is None or not (scale > 0).all():
        yield f"{node.name} has a scale that is not a positive constant"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = array_of(node.inputs[2])
        if zero is None or zero.astype(np.int64).any():
            yield f"{node.name} has a zero point that is not 0"
        elif zero.dtype == np.uint8:
            yield f"{node.name} has unsigned codes"
    if node.op_type == "QuantizeLinear" and scale is not None and scale.size != 1:
        yield f"{node.name} gives an activation more than one scale"


def _decoded(value: Any) -> bool:
    return value is not None and value.producer() is not None and value.producer().op_type == "DequantizeLinear"


def _coded_behind(node: Any) -> bool:
    reader = only_use(node.outputs[0])
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        reader = only_use(reader.outputs[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def _computed_for(value: Any, node: Any) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in _PRODUCTS and only_use(value) is node
