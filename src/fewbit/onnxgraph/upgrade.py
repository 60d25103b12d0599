"""Bring a model to the opset that its quantized form needs, and constants to where they can be seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fewbit.errors import FewbitError, require

PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear knows an axis
BLOCKED_OPSET = 21  # the first with int4 and block_size

# The IR version that came with an opset: https://github.com/onnx/onnx/blob/main/docs/Versioning.md
_IR_VERSIONS = ((13, 7), (15, 8), (19, 9), (21, 10))


def raise_opset(model: Any, least: int) -> list[str]:
    """Convert up to an opset, in place, if the model's is older.

    Returns:
        A note, or nothing.

    Raises:
        FewbitError: The converter cannot convert a node.
    """
    before = model.graph.opset_imports[""]
    if before < least:
        converter = require("onnxscript.version_converter", "onnx")
        names = {id(v): v.name for v in [*model.graph.inputs, *model.graph.outputs]}
        with _silent("onnxscript", "onnx_ir"):
            try:
                converter.convert_version(model, target_version=least, fallback=True)
            except Exception as error:  # the converter raises what its adapters raise
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise FewbitError(f"opset {before} cannot be converted to {least}: {line}") from error
        for value in [*model.graph.inputs, *model.graph.outputs]:
            value.name = names.get(id(value), value.name)
    if model.graph.opset_imports[""] < least:
        raise FewbitError(
            f"opset {before} cannot be converted to {least}, which quantizing needs; export the model anew"
        )
    needed = max((ir for opset, ir in _IR_VERSIONS if model.graph.opset_imports[""] >= opset), default=7)
    model.ir_version = max(model.ir_version, needed)
    return [f"converted from opset {before} to {least}"] if before < least else []


@contextmanager
def _silent(*loggers: str) -> Iterator[None]:
    """Libraries warn about every step of a conversion; what matters is checked afterwards."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    try:
        for logger in found:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(found, levels):
            logger.setLevel(level)
