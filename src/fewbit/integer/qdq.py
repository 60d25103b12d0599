"""The network as ONNX with Q/DQ pairs, through ``torch.onnx.export(dynamo=True)``.

Every integer tensor of the network is behind exactly one QuantizeLinear and DequantizeLinear with its scale and zero
point; absorbed activations are left out where saturation does their work. ONNX Runtime, OpenVINO and TensorRT make
integer kernels of it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fewbit import atomic
from fewbit.errors import FewbitError, require
from fewbit.integer import lower, qdq_ops
from fewbit.integer.ir import Network, Node, Ref
from fewbit.integer.maxima import keep_maxima_apart
from fewbit.integer.simplify import Program

_INFINITY = float("inf")
_ATEN = torch.ops.aten
_CLAMPS = (_ATEN.clamp.default, _ATEN.clamp_min.default, _ATEN.clamp_max.default, _ATEN.hardtanh.default)


def qdq_module(network: Network) -> tuple[fx.GraphModule, list[str]]:
    """The network as a float module with ``fewbit::qdq`` operators, and the value behind each of these, in order."""
    builder = _Builder(network)
    for node in network.nodes:
        builder.add(node)
    values = [builder.float[name] for name in network.outputs]
    builder.graph.output(values[0] if len(values) == 1 else tuple(values))
    return fx.GraphModule(builder.root, builder.graph), builder.order


class _Builder:
    """Writes a graph node by node."""

    def __init__(self, network: Network) -> None:
        self.network, self.root, self.graph = network, nn.Module(), fx.Graph()
        self.float: dict[str, Any] = {}
        self.order: list[str] = []
        for name in network.inputs:
            self.float[name] = self.graph.placeholder(name)
        for name in network.inputs:
            self._rounded(name, self.float[name])
        for name, value in network.constants.items():
            self.float[name] = self._buffer(f"constant_{name}", value)

    def add(self, node: Node) -> None:
        """Write one node, its activation where it is needed, and its quantizer."""
        if node.integer and node.op in ("conv", "linear"):
            result = self._layer(node)
        elif node.op == "avg_pool" and node.detail["kernel"] is None:
            result = self._global_average(node)
        elif isinstance(node.target, Program):
            result = self._program(node.target)
        else:
            result = self._call(node, self.float)
        if node.clip is not None and self._clip_shows(node):
            low, high = (None if abs(end) == _INFINITY else end for end in node.clip)
            result = self.graph.call_function(torch.ops.aten.clamp.default, (result, low, high))
        self._rounded(node.name, result)

    def _rounded(self, name: str, result: Any) -> None:
        affine = self.network.affine.get(name)
        if affine is not None:
            numbers = (affine.scale, affine.zero_point, affine.qmin, affine.qmax)
            result = self.graph.call_function(torch.ops.fewbit.qdq.default, (result, *numbers))
            self.order.append(name)
        self.float[name] = result

    def _clip_shows(self, node: Node) -> bool:
        affine = self.network.affine.get(node.name)
        return affine is None or lower.code_bounds(node, affine) != (affine.qmin, affine.qmax)

    def _layer(self, node: Node) -> Any:
        numbers = lower.layer_numbers(self.network, node)
        scale = (numbers.step / numbers.x.scale).to(torch.float32)
        tensors = {"codes": numbers.codes, "scale": scale, "bias": numbers.bias, "step": numbers.step.to(torch.float32)}
        held = [self._buffer(f"{node.layer}_{part}", tensor) for part, tensor in tensors.items()]
        source, walk = self.float[node.inputs[0]], node.geometry
        if walk is None:
            return self.graph.call_function(torch.ops.fewbit.qdq_linear.default, (source, *held))
        before, after = [p[0] for p in walk.padding], [p[1] for p in walk.padding]
        how = (list(walk.stride), before, after, list(walk.dilation), walk.groups)
        return self.graph.call_function(torch.ops.fewbit.qdq_conv.default, (source, *held, *how))

    def _global_average(self, node: Node) -> Any:
        """Engines fuse GlobalAveragePool, not the mean over two axes."""
        mean = self.graph.call_function(torch.ops.fewbit.global_average.default, (self.float[node.inputs[0]],))
        return mean if node.detail["keep"] else self.graph.call_function(torch.ops.aten.flatten.using_ints, (mean, 1))

    def _buffer(self, name: str, value: Tensor) -> Any:
        path = "".join(letter if letter.isalnum() else "_" for letter in name)
        while hasattr(self.root, path):
            path += "_"
        self.root.register_buffer(path, value.contiguous())
        return self.graph.get_attr(path)

    def _program(self, program: Program) -> Any:
        values = {program.root: self.float[program.root]}
        for step in program.steps:
            values[step.name] = self._call(step, values)
        return values[program.steps[-1].name]

    def _call(self, node: Node, values: dict[str, Any]) -> Any:
        def real(leaf: Any) -> Any:
            return values[leaf.name] if isinstance(leaf, Ref) else leaf

        args, kwargs = torch.utils._pytree.tree_map(
            real, (node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, Ref)
        )
        assert node.target is not None
        if node.target in _CLAMPS:
            # The exporter makes tensors of whole numbers, which clamp refuses beside plain ones.
            args, kwargs = torch.utils._pytree.tree_map(lambda x: float(x) if type(x) is int else x, (args, kwargs))
        return self.graph.call_function(node.target, args, kwargs)


def export(network: Network, example: Sequence[Tensor], path: str | Path | None = None) -> tuple[Any, dict[str, str]]:
    """Write a network as ONNX.

    Args:
        network: The network.
        example: Its inputs, in order.
        path: Where the file goes, whole or not at all; None for none.

    Returns:
        The ``onnx.ModelProto``, and the name of the tensor of codes of each integer value.

    Raises:
        FewbitError: An operation that stayed in float has no form in ONNX; the message says which.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    require("onnx", "onnx")
    module, order = qdq_module(network)
    table = qdq_ops.translations()
    dynamic = [{0: torch.export.Dim.AUTO} if x.dim() > 1 and len(x) > 1 else None for x in example]
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(), tuple(example), dynamo=True, opset_version=qdq_ops.OPSET, dynamic_shapes=tuple(dynamic),
                custom_translation_table=table, input_names=list(network.inputs), verbose=False,
            )  # fmt: skip
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise FewbitError(f"torch.onnx.export failed: {lines[0]}") from error
    assert program is not None
    keep_maxima_apart(program.model)
    model = program.model_proto
    codes = _named_codes(model, order)
    if path is not None:
        atomic.write_bytes(path, model.SerializeToString())
    return model, codes


def _named_codes(model: Any, order: list[str]) -> dict[str, str]:
    """Find the codes of each value, behind the QuantizeLinear nodes in the order in which they were written."""
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    if len(quantizers) != len(order):
        raise FewbitError(f"the exported model has {len(quantizers)} quantizers, not {len(order)}")
    clipped = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    return {name: clipped.get(node.output[0], node.output[0]) for name, node in zip(order, quantizers)}


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """A copy of an ONNX model with more of its tensors as outputs.

    Args:
        model: A ``ModelProto``.
        names: Tensors of codes.
    """
    onnx = require("onnx", "onnx")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    there = {value.name for value in copied.graph.output}
    makers = {output: node for node in copied.graph.node for output in node.output}
    for name in names:
        if name not in there:
            kinds = {i.name: i.data_type for i in copied.graph.initializer}
            like = makers[name].input[2]  # the zero point of QuantizeLinear, the upper end of Clip
            copied.graph.output.append(onnx.helper.make_tensor_value_info(name, kinds[like], None))
    return copied


@contextlib.contextmanager
def _silence() -> Any:
    """The exporter prints its progress and logs its own helpers."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
