"""The network as a TensorFlow Lite file: int8 activations, int8 weights per channel, int32 biases.

Codes are ours minus 128 where ours are unsigned. Layout is NHWC. Networks of convolutions, linear layers, sums,
averages and maxima over windows, concatenations of channels and a flattening before linear layers can be written; the
others are refused by name. What no quantizer follows (the last layer) is a float operation on dequantized codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fewbit import atomic
from fewbit.errors import FewbitError, require
from fewbit.integer import lower
from fewbit.integer.ir import Affine, Network, Node
from fewbit.integer.simulate import dequantized

# The version of each operator that takes int8 with these options.
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MEAN": 2, "RESHAPE": 1, "PAD": 2,
    "DEQUANTIZE": 2, "CONCATENATION": 2,
}  # fmt: skip
_RELU, _RELU6 = (0.0, float("inf")), (0.0, 6.0)


def write(network: Network, example: Sequence[Tensor], path: str | Path | None = None) -> tuple[bytes, dict[str, int]]:
    """Write a network for the batch size of an example.

    Args:
        network: The network; one input of four axes.
        example: Its inputs.
        path: Where the file goes, whole or not at all; None for none.

    Returns:
        The file's bytes, and the index of the tensor of each value.

    Raises:
        FewbitError: An operation has no counterpart here; the message names it.
        MissingExtraError: ai-edge-litert and flatbuffers are not installed.
    """
    writer = _Writer(network)
    shapes = _shapes(network, example)
    for name in network.inputs:
        writer.tensor(name, shapes[name])
    for node in network.nodes:
        if node.op != "shape":
            writer.add(node, shapes)
    data = writer.finish()
    if path is not None:
        atomic.write_bytes(path, data)
    return data, writer.index


def int8(affine: Affine) -> tuple[float, int]:
    """Scale and zero point of the same values counted from −128."""
    return affine.scale, affine.zero_point - affine.qmin - 128


def _shapes(network: Network, example: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    from fewbit.integer.simulate import simulate

    found: dict[str, tuple[int, ...]] = {}

    def see(name: str, value: Tensor) -> None:
        found[name] = tuple(value.shape)

    named = dict(zip(network.inputs, example))
    simulate(network.nodes, named, network.constants, {}, network.outputs, see)
    return found


class _Writer:
    """Collects tensors, buffers and operators in the object form of the schema."""

    def __init__(self, network: Network) -> None:
        self.schema = require("ai_edge_litert.schema_py_generated", "litert")
        self.network = network
        self.graph = self.schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model = self.schema.ModelT()
        self.model.buffers, self.model.operatorCodes = [self.schema.BufferT()], []
        self.codes: dict[int, int] = {}
        self.index: dict[str, int] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> int:
        """A value of the network, pictures in NHWC order; int8 where it has a quantizer."""
        affine = self.network.affine.get(name)
        if affine is not None and not affine.fills_its_dtype:
            raise FewbitError(
                f"{name} has codes from {affine.qmin} to {affine.qmax}, and TensorFlow Lite clips at those of 8 bits "
                "alone: quantize activations to 8 bits, or take another engine"
            )
        kind = self.schema.TensorType.FLOAT32 if affine is None else self.schema.TensorType.INT8
        quantized = None if affine is None else self._quantization(*int8(affine))
        self.index[name] = self._tensor(name, _nhwc(shape), kind, quantized)
        return self.index[name]

    def add(self, node: Node, shapes: dict[str, tuple[int, ...]]) -> None:
        """One operation.

        Raises:
            FewbitError: It has no counterpart.
        """
        write: Callable[..., None] | None = getattr(self, f"_{node.op}", None)
        if write is None or (node.op not in ("linear", "conv") and not node.integer):
            raise FewbitError(
                f"{node.name}: {getattr(node.target, '__name__', node.op)} is not written to TensorFlow Lite"
            )
        if node.detail.get("list") or any(name not in self.index for name in node.inputs[:1]):
            raise FewbitError(f"{node.name}: parts of a tensor are not written to TensorFlow Lite")
        write(node, shapes[node.inputs[0]], shapes[node.name])

    def finish(self) -> bytes:
        """The file."""
        flatbuffers = require("flatbuffers", "litert")
        self.graph.inputs = [self.index[name] for name in self.network.inputs]
        self.graph.outputs = [self.index[name] for name in self.network.outputs]
        self.model.version, self.model.subgraphs, self.model.description = 3, [self.graph], "fewbit"
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _conv(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        walk, numbers = node.geometry, lower.layer_numbers(self.network, node)
        assert walk is not None
        depthwise = walk.groups == before[1] == after[1] and walk.groups > 1
        if len(walk.kernel) != 2 or (walk.groups > 1 and not depthwise):
            raise FewbitError(f"layer {node.layer}: only plain and depthwise convolutions of pictures are written")
        if numbers.y is None:
            raise FewbitError(
                f"layer {node.layer}: its output stays in float, as no layer of integers reads it; in a TensorFlow "
                "Lite file that can be a linear layer alone, so take another engine"
            )
        source = self._padded(node, before)
        codes = numbers.codes.permute(1, 2, 3, 0) if depthwise else numbers.codes.permute(0, 2, 3, 1)
        weight = self._weight(node, codes.contiguous().numpy(), numbers, 3 if depthwise else 0)
        schema = self.schema
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        if depthwise:
            options.depthMultiplier = 1
        options.padding = schema.Padding.VALID
        options.strideH, options.strideW = walk.stride
        options.dilationHFactor, options.dilationWFactor = walk.dilation
        options.fusedActivationFunction = self._activation(node)
        name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
        inputs = [source, weight, self._bias(node, numbers)]
        self._operator(name, inputs, [self.tensor(node.name, after)], kind, options)

    def _padded(self, node: Node, before: tuple[int, ...]) -> int:
        """The input with its border of zeros, as an operation of its own."""
        assert node.geometry is not None
        (up, down), (left, right) = node.geometry.padding
        source = self.index[node.inputs[0]]
        if not (up or down or left or right):
            return source
        shape = _nhwc(before)
        shape = (shape[0], shape[1] + up + down, shape[2] + left + right, shape[3])
        affine = self.network.affine[node.inputs[0]]
        sides = self._constant(f"{node.name}/sides", np.array([[0, 0], [up, down], [left, right], [0, 0]], np.int32))
        kind, quantized = self.schema.TensorType.INT8, self._quantization(*int8(affine))
        padded = self._tensor(f"{node.name}/padded", shape, kind, quantized)
        self._operator("PAD", [source, sides], [padded], "PadOptions", self.schema.PadOptionsT())
        return padded

    def _linear(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        numbers, options = lower.layer_numbers(self.network, node), self.schema.FullyConnectedOptionsT()
        source = self.index[node.inputs[0]]
        if numbers.y is None:  # in float
            options.fusedActivationFunction = self._activation(node)
            plain = self._tensor(f"{node.name}/input", before, self.schema.TensorType.FLOAT32, None)
            self._operator("DEQUANTIZE", [source], [plain], "DequantizeOptions", self.schema.DequantizeOptionsT())
            bias = (numbers.bias * numbers.step).numpy().astype(np.float32)
            weight = self._constant(f"{node.layer}/weight", dequantized(node).numpy())
            inputs = [plain, weight, self._constant(f"{node.layer}/bias", bias)]
        else:
            options.fusedActivationFunction = self._activation(node)
            inputs = [source, self._weight(node, numbers.codes.numpy(), numbers, 0), self._bias(node, numbers)]
        outputs = [self.tensor(node.name, after)]
        self._operator("FULLY_CONNECTED", inputs, outputs, "FullyConnectedOptions", options)

    def _add(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        options = self.schema.AddOptionsT()
        options.fusedActivationFunction = self._activation(node)
        inputs = [self.index[node.inputs[0]], self.index[node.inputs[-1]]]
        self._operator("ADD", inputs, [self.tensor(node.name, after)], "AddOptions", options)

    def _avg_pool(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        if node.detail["kernel"] is not None:
            raise FewbitError(f"{node.name}: averages over windows are not written to TensorFlow Lite")
        options = self.schema.ReducerOptionsT()
        options.keepDims = node.detail["keep"]
        axes = self._constant(f"{node.name}/axes", np.array([1, 2], np.int32))
        inputs = [self.index[node.inputs[0]], axes]
        self._operator("MEAN", inputs, [self.tensor(node.name, after)], "ReducerOptions", options)

    def _view(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        if len(after) != 2 or before[2:] not in ((), (1, 1)):
            raise FewbitError(f"{node.name}: only a flattening of single positions is written to TensorFlow Lite")
        options = self.schema.ReshapeOptionsT()
        options.newShape = list(after)
        shape = self._constant(f"{node.name}/shape", np.array(after, np.int32))
        inputs = [self.index[node.inputs[0]], shape]
        self._operator("RESHAPE", inputs, [self.tensor(node.name, after)], "ReshapeOptions", options)

    def _concat(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        same = len({self.network.affine[name] for name in (*node.inputs, node.name)}) == 1
        if node.detail["axis"] not in (1, 1 - len(after)) or len(after) != 4 or not same:
            raise FewbitError(f"{node.name}: only channels of one scale are joined in TensorFlow Lite")
        options = self.schema.ConcatenationOptionsT()
        options.axis = 3
        inputs = [self.index[name] for name in node.inputs]
        self._operator("CONCATENATION", inputs, [self.tensor(node.name, after)], "ConcatenationOptions", options)

    def _activation(self, node: Node) -> int:
        kinds = self.schema.ActivationFunctionType
        known = {None: kinds.NONE, _RELU: kinds.RELU, _RELU6: kinds.RELU6}
        if node.clip not in known:
            raise FewbitError(f"{node.name}: TensorFlow Lite has no activation that clips at {node.clip}")
        return int(known[node.clip])

    def _weight(self, node: Node, codes: npt.NDArray[Any], numbers: lower.LayerNumbers, axis: int) -> int:
        scale = (numbers.step / numbers.x.scale).numpy()
        return self._constant(f"{node.layer}/weight", codes, self._quantization(scale, 0, axis))

    def _bias(self, node: Node, numbers: lower.LayerNumbers) -> int:
        return self._constant(f"{node.layer}/bias", numbers.bias.numpy(), self._quantization(numbers.step.numpy(), 0))

    def _quantization(self, scale: Any, zero_point: int, axis: int = 0) -> Any:
        made = self.schema.QuantizationParametersT()
        scales = np.atleast_1d(np.asarray(scale, np.float32))
        made.scale, made.zeroPoint = scales, np.full(len(scales), zero_point, np.int64)
        made.quantizedDimension = axis
        return made

    def _constant(self, name: str, values: npt.NDArray[Any], quantization: Any = None) -> int:
        kinds = self.schema.TensorType
        kind = {"int8": kinds.INT8, "int32": kinds.INT32, "float32": kinds.FLOAT32}[str(values.dtype)]
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return self._tensor(name, values.shape, kind, quantization, len(self.model.buffers) - 1)

    def _tensor(self, name: str, shape: Sequence[int], kind: int, quantization: Any, buffer: int = 0) -> int:
        made = self.schema.TensorT()
        made.name, made.shape, made.type = name.encode(), list(shape), kind
        made.quantization, made.buffer = quantization, buffer
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def _operator(self, name: str, inputs: list[int], outputs: list[int], kind: str, options: Any) -> None:
        code = getattr(self.schema.BuiltinOperator, name)
        if code not in self.codes:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
            entry.version = _VERSIONS[name]
            self.codes[code] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.codes[code], inputs, outputs
        made.builtinOptionsType, made.builtinOptions = getattr(self.schema.BuiltinOptions, kind), options
        self.graph.operators.append(made)


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape
