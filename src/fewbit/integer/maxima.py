"""Reductions to the largest or smallest value, kept apart from the quantizer behind them.

OpenVINO (2026.4) folds a QuantizeLinear into a ReduceMax, ReduceMin or GlobalMaxPool whose input a layer of integers
makes, and then computes other numbers: tens of codes away. A maximum with the lowest float32 number changes nothing and
keeps the two from being folded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.errors import require

_REDUCTIONS = ("ReduceMax", "ReduceMin", "GlobalMaxPool")
_BEFORE = ("QuantizeLinear", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")


def keep_maxima_apart(model: Any) -> int:
    """Put a Max between each such reduction and its quantizer, in place.

    Args:
        model: An ``onnx_ir.Model``.

    Returns:
        How many were put in.

    Raises:
        MissingExtraError: onnx_ir is not installed.
    """
    ir = require("onnx_ir", "onnx")
    count = 0
    for node in list(model.graph):
        if node.op_type not in _REDUCTIONS or node.domain not in ("", "ai.onnx"):
            continue
        value = node.outputs[0]
        uses = [(user, index) for user, index in value.uses() if user.op_type in _BEFORE]
        if not uses or value.dtype not in (None, ir.DataType.FLOAT):
            continue
        lowest = ir.Value(
            name=f"{value.name}_lowest", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]),
            const_value=ir.tensor(np.float32(np.finfo(np.float32).min), name=f"{value.name}_lowest"),
        )  # fmt: skip
        model.graph.register_initializer(lowest)
        apart = ir.Node("", "Max", [value, lowest], name=f"{node.name or value.name}_apart")
        apart.outputs[0].name, apart.outputs[0].type = f"{value.name}_apart", ir.TensorType(ir.DataType.FLOAT)
        apart.outputs[0].shape = value.shape
        for user, index in uses:
            user.replace_input_with(index, apart.outputs[0])
        model.graph.insert_after(node, apart)
        count += 1
    return count
