"""MatMulNBits (com.microsoft, version 1): a product with packed weights, which ONNX Runtime and OpenVINO compute
without unpacking them in memory.

Layout of B: uint8 ``[N, blocks, block_size · bits / 8]``, unsigned codes along K, the low bits of a byte first. Scales
``[N, blocks]`` float32; zero points uint8 ``[N, ceil(blocks · bits / 8)]`` packed alike, absent for ``2^(bits-1)``.
``Y = A · deq(B)ᵀ``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph.constants import add_constant, fresh_name
from fewbit.onnxgraph.dynamic import replace_node
from fewbit.onnxgraph.layers import Layer

DOMAIN = "com.microsoft"
_WHOLE_ROW_BLOCKS = (128, 64, 32, 16)  # a scale a row is written as equal scales of blocks
_SCALE_BYTES = 4
INT8_PRODUCTS = 4  # accuracy_level: inputs are rounded to int8 for each block while the model runs


def fits(spec: QSpec) -> bool:
    """Whether the node can hold such weights: integers to 8 bits, blocks of a power of two from 16 on."""
    grain = spec.granularity
    if not spec.format.is_integer or spec.bits > 8:
        return False
    if isinstance(grain, PerGroup):
        return 16 <= grain.size <= 256 and grain.size & (grain.size - 1) == 0
    return grain == PerChannel(0) or isinstance(grain, PerTensor)


def write_layer(graph: Any, layer: Layer, tensor: QTensor, bias: Tensor | None, accuracy_level: int = 0) -> Any:
    """Replace a MatMul or Gemm by MatMulNBits (and Add), in place.

    Args:
        graph: The graph.
        layer: The layer.
        tensor: Codes ``[out, K]`` (padded to whole groups) whose spec :func:`fits`.
        bias: float32 ``[out]``, or None.
        accuracy_level: The node's attribute; 0 leaves it to the runtime (float), 4 asks for int8 products.

    Returns:
        The constant that the bias became, or None.
    """
    rows, columns = tensor.shape
    block = block_size(tensor.spec, columns)
    blocks = math.ceil(columns / block)
    bits = container(tensor.spec.bits)
    name = layer.weight.name
    inputs = [
        layer.node.inputs[0],
        add_constant(graph, f"{name}_quantized", pack(_unsigned(tensor, bits, block, blocks), bits)),
        add_constant(graph, f"{name}_scale", _scales(tensor, rows, blocks)),
    ]
    zeros = _zero_points(tensor, bits, rows, blocks)
    if zeros is not None:
        inputs.append(add_constant(graph, f"{name}_zero_point", pack(zeros, bits)))
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    product = ir.Node(
        DOMAIN, "MatMulNBits", inputs, [ir.AttrInt64(k, v) for k, v in attributes.items()], name=f"{layer.name}_NBits"
    )
    product.outputs[0].name = fresh_name(graph, f"{layer.name}_NBits_output")
    made, offset = [product], None
    if bias is not None:
        offset = add_constant(graph, f"{layer.name}_bias", bias.numpy().astype(np.float32))
        made.append(ir.Node("", "Add", [product.outputs[0], offset], name=f"{layer.name}_Add"))
        made[-1].outputs[0].name = fresh_name(graph, f"{layer.name}_Add_output")
    replace_node(graph, layer.node, made)
    graph.opset_imports.setdefault(DOMAIN, 1)
    return offset


def block_size(spec: QSpec, columns: int) -> int:
    """How many values share a scale in the file.

    Args:
        spec: Of the weight.
        columns: K; where a whole row has one scale the blocks are those that take fewest bytes, as the last of them is
            filled up.
    """
    if isinstance(spec.granularity, PerGroup):
        return spec.granularity.size
    bits = container(spec.bits)
    return min(_WHOLE_ROW_BLOCKS, key=lambda size: math.ceil(columns / size) * (size * bits // 8 + _SCALE_BYTES))


def container(bits: int) -> int:
    """Bits of a code in the file: 2, 4 or 8, the widths that runtimes have kernels for."""
    return next(width for width in (2, 4, 8) if bits <= width)


def pack(codes: Tensor, bits: int) -> np.ndarray:
    """Unsigned codes along the last axis into bytes, the low bits first: uint8 ``[..., ceil(n · bits / 8)]``."""
    each = 8 // bits
    missing = -codes.shape[-1] % each
    padded = torch.nn.functional.pad(codes.to(torch.int32), (0, missing))
    padded = padded.reshape(*padded.shape[:-1], -1, each)
    shifted = padded << (torch.arange(each, dtype=torch.int32) * bits)
    packed: np.ndarray = shifted.sum(-1).to(torch.uint8).numpy()
    return packed


def _offset(tensor: QTensor, bits: int) -> int:
    """What makes a code unsigned, with the middle at ``2^(bits-1)`` for symmetric weights."""
    return 0 if tensor.spec.format.qmin >= 0 else 1 << (bits - 1)


def _unsigned(tensor: QTensor, bits: int, block: int, blocks: int) -> Tensor:
    """Codes ``[out, blocks, block_size]``; what fills up the last block stands for 0 or is never read."""
    codes = tensor.codes.to(torch.int32) + _offset(tensor, bits)
    missing = blocks * block - codes.shape[1]
    if missing > 0:
        codes = torch.nn.functional.pad(codes, (0, missing), value=_offset(tensor, bits))
    return codes.reshape(codes.shape[0], blocks, block)


def _scales(tensor: QTensor, rows: int, blocks: int) -> np.ndarray:
    scale = tensor.scale.float()
    spread = scale if scale.dim() == 2 else scale.reshape(-1, 1).expand(rows, blocks)
    found: np.ndarray = spread.contiguous().numpy()
    return found


def _zero_points(tensor: QTensor, bits: int, rows: int, blocks: int) -> Tensor | None:
    offset = _offset(tensor, bits)
    if tensor.zero_point is None:
        return None if offset else torch.zeros(rows, blocks, dtype=torch.int32)
    zero = tensor.zero_point.to(torch.int32) + offset
    return zero if zero.dim() == 2 else zero.reshape(-1, 1).expand(rows, blocks)
