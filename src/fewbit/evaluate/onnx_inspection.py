"""What an ONNX model holds: inputs, nodes, and each layer's weights, in float or in codes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.evaluate.inspection import WIDTHS
from fewbit.onnxgraph import file
from fewbit.onnxgraph.constants import attribute

_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "QLinearConv", "QLinearMatMul")


@dataclass(frozen=True)
class OnnxLayerInfo:
    """One layer.

    Attributes:
        name: The node's name.
        kind: Its type.
        shape: Of its weight.
        weights: The type the weight is stored in, with the block size where it has one.
        input: ``coded`` where it reads a DequantizeLinear or codes, else ``float``.
        nbytes: Of the stored weight.
        parameters: Values of the weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: str
    input: str
    nbytes: int
    parameters: int

    def bytes_at(self, bits: int) -> int:
        """Bytes with every value of the weight at `bits` bits, without scales."""
        return math.ceil(self.parameters * bits / 8)

    def bytes_at_widths(self) -> dict[str, int]:
        """The same for the usual widths, by name (``bytes_fp16``, …)."""
        return {f"bytes_{name}": self.bytes_at(bits) for name, bits in WIDTHS}


@dataclass(frozen=True)
class OnnxInspection:
    """One model.

    Attributes:
        opsets: Versions by domain.
        inputs: Types and shapes by name.
        outputs: The same.
        nodes: How many there are of each type, most first.
        layers: In order.
        parameters: Values in all constants.
        nbytes: Their bytes.
    """

    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    nodes: dict[str, int]
    layers: tuple[OnnxLayerInfo, ...]
    parameters: int
    nbytes: int


def inspect_onnx(path: str | Path) -> OnnxInspection:
    """Look into an ONNX file.

    Raises:
        FewbitError: It cannot be read.
    """
    model = file.read(path)
    graph = model.graph
    constants = [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]
    layers = (_layer(node) for node in graph if node.op_type in _LAYERS)
    return OnnxInspection(
        dict(graph.opset_imports),
        {value.name: _typed(value) for value in graph.inputs if not value.is_initializer()},
        {value.name: _typed(value) for value in graph.outputs},
        dict(Counter(node.op_type for node in graph).most_common()),
        tuple(layer for layer in layers if layer is not None),
        sum(math.prod(tensor.shape) for tensor in constants),
        sum(tensor.nbytes for tensor in constants),
    )


def _layer(node: Any) -> OnnxLayerInfo | None:
    index = 3 if node.op_type == "QLinearConv" else 1
    index = 3 if node.op_type == "QLinearMatMul" else index
    weight = node.inputs[index]
    source = weight.producer() if weight is not None else None
    block = attribute(node, "block_size", 0)
    if source is not None and source.op_type == "DequantizeLinear":
        block, weight = attribute(source, "block_size", 0), source.inputs[0]
    tensor = None if weight is None else weight.const_value
    if tensor is None:
        return None
    kind, count = str(tensor.dtype).lower(), math.prod(tensor.shape)
    if node.op_type == "MatMulNBits":
        kind, count = f"int{attribute(node, 'bits', 4)}", attribute(node, "K", 0) * attribute(node, "N", 0)
    return OnnxLayerInfo(
        node.name or node.outputs[0].name,
        node.op_type,
        tuple(int(d) for d in tensor.shape),
        f"{kind}/g{block}" if block else kind,
        "coded" if _is_coded(node) else "float",
        tensor.nbytes,
        int(count),
    )


def _is_coded(node: Any) -> bool:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    by_reader = source is not None and source.op_type in ("DequantizeLinear", "DynamicQuantizeLinear")
    return by_reader or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer")


def _typed(value: Any) -> str:
    shape = "?" if value.shape is None else "×".join(str(d) for d in value.shape)
    return f"{str(value.dtype).lower()} {shape}"
