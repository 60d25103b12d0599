"""Read an ONNX file with onnx-ir, refuse what is broken in one sentence, and write it whole or not at all.

Weights in external data stay on disk, memory-mapped, until they are read; a model of any size opens at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbit.atomic import new_file
from fewbit.errors import FewbitError, require
from fewbit.onnxgraph import checks

#: A protobuf file cannot be larger; beyond it weights go to a file of their own.
INLINE_LIMIT = 1_900_000_000
_CODED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def check_installed() -> None:
    """Look for the packages that ONNX files need.

    Raises:
        MissingExtraError: One is not there; the message names the extra.
    """
    for package in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        require(package, "onnx")


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
        raise FewbitError(f"{path} is no ONNX model that can be read: {checks.first_line(error)}") from error
    if not model.graph.outputs or not len(model.graph):
        raise FewbitError(f"{path} is no ONNX model: it has no nodes or no outputs")
    checks.check(model, path)
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
    data = data_path(path)
    with new_file(path, overwrite=overwrite) as temporary, new_file(data, overwrite=overwrite) as weights:
        _write_split(ir, model, temporary, weights, data.name)
    return path


def data_path(path: Path) -> Path:
    """Where the weights of a file go that does not hold them itself."""
    return path.with_name(path.name + ".data")


def external_files(model: Any, path: Path) -> list[Path]:
    """The files beside a model that hold its external data.

    Args:
        model: As :func:`read` gave it.
        path: Where it was read from.
    """
    ir = require("onnx_ir", "onnx")
    tensors = (value.const_value for value in checks.initializers(model))
    return [
        path.parent / name for name in sorted({str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)})
    ]


def initializer_bytes(model: Any) -> int:
    """Bytes of all constants of the model, subgraphs included."""
    return sum(value.const_value.nbytes for value in checks.initializers(model) if value.const_value is not None)


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


def size(path: str | Path) -> int:
    """Bytes of an ONNX file and of the external data that it names."""
    ir = require("onnx_ir", "onnx")
    tensors = (value.const_value for value in checks.initializers(ir.load(path)))
    return int(Path(path).stat().st_size + sum(t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor)))


def _inlined(model: Any) -> Any:
    """The same model with external tensors read into memory."""
    ir = require("onnx_ir", "onnx")
    for value in checks.initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(
                value.const_value.numpy().copy(), dtype=value.const_value.dtype, name=value.name
            )
    return model


def _write_split(ir: Any, model: Any, temporary: Path, weights: Path, location: str) -> None:
    """The graph to one file and its tensors, one after the other, to another; the graph names the final location."""
    before = {id(value): value.const_value for value in checks.initializers(model)}
    try:
        ir.external_data.unload_from_model(model, weights.parent, weights.name, size_threshold_bytes=256)
        proto = ir.serde.serialize_model(model)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    finally:
        for value in checks.initializers(model):
            value.const_value = before[id(value)]
