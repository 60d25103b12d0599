"""The official ONNX node tests of the quantization operators, on fewbit's own numbers.

The cases come from the ``onnx`` package. The adapters below read a node's attributes and inputs and call
fewbit; they move data (axes, dtypes, missing inputs) and compute nothing but the real multiplier
``s_a s_b / s_y`` that ``requantize`` is given.
Results are compared bit for bit, not within the tolerance that the cases would allow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewbit.kernels import reference
from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.formats import get_format
from fewbit.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

onnx = pytest.importorskip("onnx")

FORMATS = {
    "INT2": "int2", "UINT2": "uint2", "INT4": "int4", "UINT4": "uint4", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int16", "UINT16": "uint16", "FLOAT8E4M3FN": "fp8_e4m3",
    "FLOAT8E5M2": "fp8_e5m2", "FLOAT4E2M1": "fp4_e2m1",
}  # fmt: skip

EXPECTED = {
    "ConvInteger": ["convinteger_with_padding", "convinteger_without_padding"],
    "DequantizeLinear": ["dequantizelinear"] + [f"dequantizelinear_{suffix}" for suffix in (
        "axis", "blocked", "e4m3fn", "e4m3fn_float16", "e4m3fn_zero_point", "e5m2", "float4e2m1",
        "int16", "int2", "int4", "uint16", "uint2", "uint4")],
    "DynamicQuantizeLinear": [
        "dynamicquantizelinear", "dynamicquantizelinear_max_adjusted", "dynamicquantizelinear_min_adjusted"],
    "MatMulInteger": ["matmulinteger"],
    "QLinearConv": ["qlinearconv"],
    "QLinearMatMul": [
        f"qlinearmatmul_{rank}_{code}_{scale}"
        for rank in ("2D", "3D") for code in ("int8", "uint8") for scale in ("float16", "float32")],
    "QuantizeLinear": ["quantizelinear"] + [f"quantizelinear_{suffix}" for suffix in (
        "axis", "blocked_asymmetric", "blocked_symmetric", "e4m3fn", "e5m2", "float4e2m1",
        "int16", "int2", "int4", "uint16", "uint2", "uint4")],
}  # fmt: skip

# Cases that concern quantization and are not run, with the reason.
OUT_OF_SCOPE = {
    f"test_dynamicquantizelinear{suffix}_expanded": "spelled out as Div, Round, Clip, …: no quantized node"
    for suffix in ("", "_max_adjusted", "_min_adjusted")
}


class Node:
    """One node with its inputs, and what it must give."""

    def __init__(self, case: Any) -> None:
        self.case = case
        self.node = case.model.graph.node[0]
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}
        given, self.outputs = case.data_sets[0]
        values = dict(zip([v.name for v in case.model.graph.input], given))
        self.inputs = [values.get(name) for name in self.node.input]
        types = [*case.model.graph.input, *case.model.graph.output]
        self.types = {v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in types}

    def tensor(self, index: int) -> Tensor | None:
        """Input ``index`` as codes or floats, None when the node leaves it out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else to_torch(value)

    def need(self, index: int) -> Tensor:
        """Input ``index``, which the operator demands."""
        value = self.tensor(index)
        assert value is not None
        return value

    def format_name(self, edge: str) -> str:
        """fewbit's name of the type of an input or output."""
        return FORMATS[self.types[edge]]


def to_torch(value: Any) -> Tensor:
    """Of an array, scalar or TensorProto; integers below a byte one a byte, small floats as bit patterns."""
    array = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    if array.dtype.name in ("int2", "int4"):
        array = array.astype(np.int8)
    elif array.dtype.name in ("uint2", "uint4"):
        array = array.astype(np.uint8)
    elif array.dtype.name.startswith(("float8", "float4")):
        array = array.view(np.uint8)
    return torch.from_numpy(np.array(array))


@lru_cache
def all_cases() -> dict[str, Any]:
    """Every node test of the installed onnx that has to do with quantization, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the other operators' cases overflows on purpose
        found = collect_testcases()
    names = tuple(name.lower() for name in EXPECTED)
    return {c.name: c for c in found if c.name.removeprefix("test_").startswith(names)}


# --- adapters: one an operator ------------------------------------------------------------------


def layout(node: Node, scale: Tensor) -> tuple[Granularity, int | None]:
    """ONNX's axis and block_size as a granularity, and for blocks the axis to move last."""
    axis = int(node.attributes.get("axis", 1))
    if block := int(node.attributes.get("block_size", 0)):
        return PerGroup(block), axis
    return (PerTensor() if scale.dim() == 0 else PerChannel(axis)), None


def zero_point_of(node: Node, spec_format: str, scale: Tensor) -> Tensor | None:
    """The third input with the scale's shape; for floating formats as a value of the grid."""
    codes = node.tensor(2)
    if codes is None:
        return None
    fmt = get_format(spec_format)
    value = codes.to(torch.int32) if fmt.is_integer else fmt.decode(codes)
    return value.reshape(scale.shape)


def last(x: Tensor | None, axis: int | None) -> Tensor | None:
    return x if x is None or axis is None else x.movedim(axis, -1).contiguous()


def quantize_linear(node: Node) -> list[Tensor]:
    x, scale = node.need(0), node.need(1)
    name = node.format_name(node.node.output[0])
    zero_point = zero_point_of(node, name, scale)
    granularity, axis = layout(node, scale)
    spec = QSpec(get_format(name), granularity, symmetric=zero_point is None)
    moved, moved_scale = last(x, axis), last(scale, axis)
    assert moved is not None
    assert moved_scale is not None
    codes = quantize(moved, spec, scale=moved_scale, zero_point=last(zero_point, axis)).codes
    return [codes if axis is None else codes.movedim(-1, axis)]


def dequantize_linear(node: Node) -> list[Tensor]:
    codes, scale = node.need(0), node.need(1)
    name = node.format_name(node.node.input[0])
    zero_point = zero_point_of(node, name, scale)
    granularity, axis = layout(node, scale)
    moved, moved_scale = last(codes, axis), last(scale, axis)
    assert moved is not None
    assert moved_scale is not None
    spec = QSpec(get_format(name), granularity, symmetric=zero_point is None)
    q = QTensor(moved, moved_scale.to(torch.float32), last(zero_point, axis), spec, tuple(moved.shape))
    x = q.dequantize().to(scale.dtype)
    return [x if axis is None else x.movedim(-1, axis)]


def dynamic_quantize_linear(node: Node) -> list[Tensor]:
    x = node.need(0)
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), "uint8/tensor/asym")
    assert zero_point is not None
    q = quantize(x, "uint8/tensor/asym", scale=scale, zero_point=zero_point)
    return [q.codes, scale, zero_point.to(torch.uint8)]


def mat_mul_integer(node: Node) -> list[Tensor]:
    a_zero, b_zero = node.tensor(2), node.tensor(3)
    a_zero, b_zero = 0 if a_zero is None else a_zero, 0 if b_zero is None else b_zero
    return [reference.int_matmul(node.need(0), node.need(1), a_zero, b_zero)]


def q_linear_mat_mul(node: Node) -> list[Tensor]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (node.need(i) for i in range(8))
    return [requantized(reference.int_matmul(a, b, a_zero, b_zero), a_scale, b_scale, y_scale, y_zero)]


def conv_integer(node: Node) -> list[Tensor]:
    return [conv(node, node.need(0), node.need(1), node.tensor(2), node.tensor(3))]


def q_linear_conv(node: Node) -> list[Tensor]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (node.need(i) for i in range(8))
    return [requantized(conv(node, x, w, x_zero, w_zero), x_scale, w_scale, y_scale, y_zero)]


def conv(node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None) -> Tensor:
    rank = x.dim() - 2
    pads = node.attributes.get("pads", [0] * 2 * rank)
    return reference.int_conv(
        x,
        w,
        0 if x_zero is None else x_zero,
        0 if w_zero is None else w_zero,
        stride=tuple(node.attributes.get("strides", [1] * rank)),
        padding=tuple(zip(pads[:rank], pads[rank:])),
        dilation=tuple(node.attributes.get("dilations", [1] * rank)),
        groups=node.attributes.get("group", 1),
    )


def requantized(acc: Tensor, a_scale: Tensor, b_scale: Tensor, y_scale: Tensor, y_zero: Tensor) -> Tensor:
    info = torch.iinfo(y_zero.dtype)
    multiplier = a_scale.double() * b_scale.double() / y_scale.double()
    return reference.requantize(acc, multiplier, y_zero, info.min, info.max).to(y_zero.dtype)


ADAPTERS: dict[str, Callable[[Node], list[Tensor]]] = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": mat_mul_integer,
    "QLinearMatMul": q_linear_mat_mul,
    "ConvInteger": conv_integer,
    "QLinearConv": q_linear_conv,
}


# --- the tests ----------------------------------------------------------------------------------


def test_every_case_is_accounted_for() -> None:
    """A newer onnx with more cases fails here, so that none is passed over in silence."""
    expected = {f"test_{name}" for names in EXPECTED.values() for name in names}
    assert len(expected) == 42
    assert set(all_cases()) == expected | set(OUT_OF_SCOPE)


@pytest.mark.parametrize("name", [name for names in EXPECTED.values() for name in names])
def test_node(name: str) -> None:
    node = Node(all_cases()[f"test_{name}"])
    assert len(node.case.data_sets) == 1
    results = ADAPTERS[node.node.op_type](node)
    assert len(results) == len(node.outputs)
    for result, output in zip(results, node.outputs):
        wanted = to_torch(output)
        assert result.dtype == wanted.dtype
        assert result.shape == wanted.shape
        assert torch.equal(result, wanted)
