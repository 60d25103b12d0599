"""The layers of an ONNX graph: nodes that multiply by a constant weight, and that weight as a matrix ``[out, K]``.

============== ============================ ============================= ==========================
node           weight in the file           matrix                        axis of its output channels
============== ============================ ============================= ==========================
Conv           ``[out, in/g, *kernel]``     ``[out, in/g · kernel]``      0
ConvTranspose  ``[in, out/g, *kernel]``     ``[out/g, in · kernel]``      1
MatMul         ``[K, N]``                   ``[N, K]``                    1
Gemm           ``[K, N]``, transB ``[N, K]``  ``[N, K]``                    1, transB 0
============== ============================ ============================= ==========================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.onnxgraph.constants import array_of, attribute, only_use

# Training leaves channels that died at values whose scale float32 cannot hold; beside others they are 0.
_NOTHING = 1e-30
KINDS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True, eq=False)
class Layer:
    """One node with a constant weight.

    Attributes:
        name: The node's name.
        kind: Its type.
        node: The node.
        axis: The weight's axis of output channels.
    """

    name: str
    kind: str
    node: Any
    axis: int

    @property
    def weight(self) -> Any:
        """The weight's value in the graph."""
        return self.node.inputs[1]

    @property
    def bias_at(self) -> tuple[Any, int] | None:
        """The node and the input of it that the bias is, or would be: for a MatMul the constant that is added to it;
        None where there is no such addition."""
        if self.kind != "MatMul":
            return self.node, 2
        reader = only_use(self.node.outputs[0])
        if reader is None or reader.op_type != "Add":
            return None
        index = 1 if reader.inputs[0] is self.node.outputs[0] else 0
        constant, width = array_of(reader.inputs[index]), int(self.weight.const_value.shape[1])
        fits = constant is not None and constant.shape in ((), (1,), (width,)) and constant.dtype == np.float32
        return (reader, index) if fits else None

    @property
    def bias(self) -> Any:
        """The bias's value among the node's own inputs, or None."""
        return self.offset if self.kind != "MatMul" else None

    @property
    def offset(self) -> Any:
        """The value at :attr:`bias_at`, or None."""
        at = self.bias_at
        return at[0].inputs[at[1]] if at is not None and len(at[0].inputs) > at[1] else None

    @property
    def output(self) -> Any:
        """The product with its bias."""
        at = self.bias_at
        return (self.node if at is None else at[0]).outputs[0]

    @property
    def groups(self) -> int:
        """Channel groups of a convolution."""
        return int(attribute(self.node, "group", 1))

    def matrix(self) -> Tensor:
        """The weight as float32 ``[out, K]``; magnitudes below 1e-30 as 0."""
        array = array_of(self.weight)
        assert array is not None
        matrix = torch.from_numpy(np.array(array)).movedim(self.axis, 0).flatten(1).contiguous()
        return matrix.masked_fill_(matrix.abs() < _NOTHING, 0)

    def in_file(self, matrix: Tensor) -> Tensor:
        """A matrix ``[out, K]`` (of codes or of values) in the layout of the file."""
        shape = [int(d) for d in self.weight.const_value.shape]
        moved = [shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :]]
        return matrix.reshape(moved).movedim(0, self.axis).contiguous()


def find(model: Any) -> list[Layer]:
    """The layers of the main graph, in order: float32 constants with two axes or more."""
    return list(_found(model))


def why_not(node: Any) -> str | None:
    """Why a product is no layer; None when it is one."""
    weight = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None and node.op_type == "MatMul" and array_of(node.inputs[0]) is not None:
        return "its weight is on the left side of the product"
    if weight is None:
        return "its weight is computed"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, only float32 is quantized: convert the model to float32 first"
    if weight.size == 0 or weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
        return f"its weight has the shape {list(weight.shape)} and is no matrix"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "it multiplies its input transposed (transA): have a Transpose node do that"
    if node.op_type == "Gemm" and _scales(node):
        return "it scales its product (alpha or beta): have its weight and bias hold the factors"
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return _odd_bias(node, array_of(node.inputs[2]))
    return None


def why_none(skipped: Mapping[str, str]) -> str:
    """A sentence on a model without layers.

    Args:
        skipped: Why each of its products is none, by name.
    """
    if not skipped:
        return "the model has no Conv, ConvTranspose, MatMul or Gemm, so there is nothing to quantize"
    names: dict[str, list[str]] = {}
    for name, why in skipped.items():
        names.setdefault(why, []).append(name)
    told = (
        f"node {own[0]!r}{f' and {len(own) - 1} more' if len(own) > 1 else ''} ({why})" for why, own in names.items()
    )
    return f"no layer of the model can be quantized: {', '.join(told)}"


def _odd_bias(node: Any, bias: np.ndarray | None) -> str | None:
    """Why a bias is none: not one constant for each output channel."""
    if bias is None:
        return "its bias is computed"
    if bias.dtype != np.float32 or (bias.ndim > 1 and bias.size > bias.shape[-1]):
        return f"its bias is {bias.dtype} of the shape {list(bias.shape)}"
    return None


def _found(model: Any) -> Iterator[Layer]:
    for node in model.graph:
        if node.op_type in KINDS and node.domain in ("", "ai.onnx") and why_not(node) is None:
            yield Layer(node.name, node.op_type, node, _axis(node))


def _axis(node: Any) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _scales(node: Any) -> bool:
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return bool(attribute(node, "alpha", 1.0) != 1.0 or (has_bias and attribute(node, "beta", 1.0) != 1.0))
