"""What is checked of a graph when it is read: opset, data of constants, wiring, and nodes by their schemas.

Every finding is one sentence that names the tensor or node. Subgraphs (of If, Loop, Scan) are looked into; they may
read what the graphs around them have computed before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError, require

OLDEST_OPSET = 11


def check(model: Any, path: Path) -> None:
    """All checks.

    Args:
        model: ``onnx_ir.Model`` as read.
        path: Where it comes from, for external data and for messages.

    Raises:
        FewbitError: Something is missing, broken or not supported.
    """
    _check_opset(model, path)
    _check_constants(model, path)
    _check_wiring(model.graph, path, set())
    _check_nodes(model, path)


def first_line(error: BaseException) -> str:
    """What a library told, in one line that does not end in the middle of a sentence."""
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def initializers(model: Any) -> Iterator[Any]:
    """The constants of the graph and its subgraphs."""
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


def _check_constants(model: Any, path: Path) -> None:
    ir = require("onnx_ir", "onnx")
    for value in initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, value.name, path)
        elif tensor is not None:
            _check_data(tensor, value.name, path)


def _check_data(tensor: Any, name: str, path: Path) -> None:
    dims = [int(d) for d in tensor.shape]
    try:
        if min(dims, default=0) < 0:
            raise ValueError("a negative size")
        tensor.numpy()
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise FewbitError(
            f"{path}: tensor {name!r} is broken: its data does not fill the dims {dims} it declares"
        ) from error


def _check_external(tensor: Any, name: str, path: Path) -> None:
    location = str(tensor.location)
    if os.path.isabs(location) or ".." in Path(location).parts:
        raise FewbitError(f"{path}: tensor {name!r} points outside the model's folder ({location})")
    file = path.parent / location
    if not file.is_file():
        raise FewbitError(f"{path}: the external data of tensor {name!r} is missing; put {location} beside the model")
    needed = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if file.stat().st_size < needed:
        raise FewbitError(
            f"{path}: {location} ends before tensor {name!r} does ({file.stat().st_size} of {needed} bytes)"
        )
    if tensor.length and tensor.length != tensor.nbytes:
        dims = list(map(int, tensor.shape))
        raise FewbitError(
            f"{path}: tensor {name!r} is broken: {tensor.length} bytes of data do not fill the dims {dims} it declares"
        )


def _check_wiring(graph: Any, path: Path, outer: set[int]) -> None:
    """Every input of every node comes from somewhere: from before it, or from a graph around."""
    known = outer | {id(value) for value in [*graph.inputs, *graph.initializers.values()]}
    for node in graph:
        for value in node.inputs:
            if value is not None and id(value) not in known and value.name:
                name = node.name or node.outputs[0].name
                raise FewbitError(
                    f"{path}: node {name!r} ({node.op_type}) reads {value.name!r}, which nothing before it computes"
                )
        for inner in subgraphs(node):
            _check_wiring(inner, path, known)
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
            proto = ir.serde.serialize_node(node)
            if subgraphs(node):
                onnx.checker.check_graph(_alone(onnx, proto, read_outside(node)), context)
            else:
                onnx.checker.check_node(proto, context)
        except onnx.checker.ValidationError as error:
            name = node.name or node.outputs[0].name
            raise FewbitError(f"{path}: node {name!r} ({node.op_type}) is broken: {first_line(error)}") from error


def subgraphs(node: Any) -> list[Any]:
    """The graphs that a node holds as attributes (If, Loop, Scan)."""
    found = []
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            found.append(attribute.value)
        elif attribute.type.name == "GRAPHS":
            found.extend(attribute.value)
    return found


def read_outside(node: Any) -> list[str]:
    """Names of the tensors that a node's subgraphs read from the graphs around it."""
    made: set[int] = set()
    read: dict[int, str] = {}

    def look(graph: Any) -> None:
        made.update(id(value) for value in [*graph.inputs, *graph.initializers.values()])
        for inner in graph:
            made.update(id(value) for value in inner.outputs)
            read.update({id(value): value.name for value in inner.inputs if value is not None})
            for deeper in subgraphs(inner):
                look(deeper)
        read.update({id(value): value.name for value in graph.outputs})

    for graph in subgraphs(node):
        look(graph)
    return list(dict.fromkeys(name for key, name in read.items() if key not in made and name))


def _alone(onnx: Any, node: Any, outside: list[str]) -> Any:
    """A graph of one node, which has what the node and its subgraphs read as inputs; types do not matter."""

    def typed(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])

    inputs = dict.fromkeys([*(name for name in node.input if name), *outside])
    return onnx.helper.make_graph([node], "alone", list(map(typed, inputs)), list(map(typed, node.output)))
