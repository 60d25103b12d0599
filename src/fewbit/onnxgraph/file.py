"""Read an ONNX file with onnx-ir, refuse what is broken in one sentence, and write it whole or not at all.

Weights in external data stay on disk, memory-mapped, until they are read; a model of any size opens at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbit.atomic import new_file
from fewbit.errors import FewbitError, require

#: A protobuf file cannot be larger; beyond it weights go to a file of their own.
INLINE_LIMIT = 1_900_000_000
OLDEST_OPSET = 11
_CODED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def read(path: str | Path) -> Any:
    """Open an ONNX file.

    Returns:
        An ``onnx_ir.Model`` whose external tensors are mapped, not read.

    Raises:
        FewbitError: There is no such file, it is no ONNX model, its opset is not supported, or external data is
            missing; the message names the tensor or node.
        MissingExtraError: onnx or onnx-ir is not installed.
    """
    ir = require("onnx_ir", "onnx")
    path = Path(path)
    if not path.is_file():
        raise FewbitError(f"{path} does not exist" if not path.exists() else f"{path} is a folder, not an ONNX file")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, onnx and onnx-ir each raise their own
        raise FewbitError(f"{path} is no ONNX model that can be read: {_first_line(error)}") from error
    if not model.graph.outputs or not len(model.graph):
        raise FewbitError(f"{path} is no ONNX model: it has no nodes or no outputs")
    _check_opset(model, path)
    _check_external(model, path)
    _check_wiring(model, path)
    _check_nodes(model, path)
    return model


def is_quantized(model: Any) -> bool:
    """Whether the model holds codes already."""
    return any(node.op_type in _CODED or node.op_type == "MatMulNBits" for node in model.graph)


def write(model: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model under a temporary name, then rename it; weights beyond 1.9 GB go to ``NAME.data`` beside it.

    Raises:
        FewbitError: The file exists and may not be replaced, or cannot be written.
    """
    ir = require("onnx_ir", "onnx")
    path = Path(path)
    if initializer_bytes(model) < INLINE_LIMIT:
        with new_file(path, overwrite=overwrite) as temporary:
            ir.save(_inlined(model), temporary, format="protobuf")
        return path
    data = path.with_name(path.name + ".data")
    with new_file(path, overwrite=overwrite) as temporary, new_file(data, overwrite=overwrite) as weights:
        _write_split(ir, model, temporary, weights, data.name)
    return path


def initializer_bytes(model: Any) -> int:
    """Bytes of all constants of the model, subgraphs included."""
    return sum(value.const_value.nbytes for value in _initializers(model) if value.const_value is not None)


def serialize(model: Any) -> bytes:
    """The model as the bytes of an ONNX file, external data inlined.

    Raises:
        FewbitError: It is too large for one protobuf message.
    """
    ir = require("onnx_ir", "onnx")
    if initializer_bytes(model) >= INLINE_LIMIT:
        raise FewbitError("the model is beyond 2 GB and does not fit one message; write it to a file")
    data: bytes = ir.serde.serialize_model(_inlined(model)).SerializeToString(deterministic=True)
    return data


def _inlined(model: Any) -> Any:
    """The same model with external tensors read into memory."""
    ir = require("onnx_ir", "onnx")
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(
                value.const_value.numpy().copy(), dtype=value.const_value.dtype, name=value.name
            )
    return model


def _write_split(ir: Any, model: Any, temporary: Path, weights: Path, location: str) -> None:
    """The graph to one file and its tensors, one after the other, to another; the graph names the final location."""
    before = {id(value): value.const_value for value in _initializers(model)}
    try:
        ir.external_data.unload_from_model(model, weights.parent, weights.name, size_threshold_bytes=256)
        proto = ir.serde.serialize_model(model)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    finally:
        for value in _initializers(model):
            value.const_value = before[id(value)]


def _initializers(model: Any) -> Iterator[Any]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _check_opset(model: Any, path: Path) -> None:
    onnx = require("onnx", "onnx")
    opset = model.graph.opset_imports.get("")
    if opset is None:
        raise FewbitError(f"{path} uses no standard ONNX operators, so there is nothing to quantize")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        which = f"node {next(iter(model.graph)).name or next(iter(model.graph)).op_type!r} and all others are"
        raise FewbitError(
            f"{path}: {which} of opset {opset}; opsets {OLDEST_OPSET} to {newest} are supported: export the model again"
        )


def _check_external(model: Any, path: Path) -> None:
    ir = require("onnx_ir", "onnx")
    for value in _initializers(model):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if os.path.isabs(location) or ".." in Path(location).parts:
            raise FewbitError(f"{path}: tensor {value.name!r} points outside the model's folder ({location})")
        file = path.parent / location
        if not file.is_file():
            raise FewbitError(
                f"{path}: the external data of tensor {value.name!r} is missing; put {location} beside the model"
            )
        needed = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if file.stat().st_size < needed:
            raise FewbitError(
                f"{path}: {location} ends before tensor {value.name!r} does ({file.stat().st_size} of {needed} bytes)"
            )


def _check_wiring(model: Any, path: Path) -> None:
    """Every input of every node comes from somewhere."""
    known = {id(value) for value in [*model.graph.inputs, *model.graph.initializers.values()]}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and id(value) not in known and value.name:
                name = node.name or node.outputs[0].name
                raise FewbitError(
                    f"{path}: node {name!r} ({node.op_type}) reads {value.name!r}, which nothing before it computes"
                )
        known |= {id(value) for value in node.outputs}


def _check_nodes(model: Any, path: Path) -> None:
    """Every node of the standard domain is what its operator's schema says, by the checker of onnx."""
    onnx = require("onnx", "onnx")
    ir = require("onnx_ir", "onnx")
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = dict(model.graph.opset_imports)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            onnx.checker.check_node(ir.serde.serialize_node(node), context)
        except onnx.checker.ValidationError as error:
            name = node.name or node.outputs[0].name
            raise FewbitError(f"{path}: node {name!r} ({node.op_type}) is broken: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
