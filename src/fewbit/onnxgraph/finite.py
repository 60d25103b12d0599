"""Constants that hold NaN or infinity, told by node and tensor before data or a layer behind them is blamed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.errors import FewbitError
from fewbit.onnxgraph.constants import array_of
from fewbit.onnxgraph.layers import KINDS

_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Clip", "LeakyRelu", "PRelu")


def check(model: Any) -> None:
    """Look at the constants of a graph as it was read. Weights of products are left to whoever reads them.

    Raises:
        FewbitError: A constant that a product, a norm or arithmetic reads holds NaN, or infinity where that is no mask
            and no bound.
    """
    for graph in model.graphs():
        for node in graph:
            if node.domain in ("", "ai.onnx") and node.op_type in (*KINDS, *_NORMS, *_ARITHMETIC):
                _check_node(node)


def _check_node(node: Any) -> None:
    for index, value in enumerate(node.inputs):
        if node.op_type in KINDS and index == 1:
            continue
        array = _constant(value)
        if array is None or array.dtype.kind != "f":
            continue
        what = "NaN" if np.isnan(array).any() else "infinity" if _refused(node, index, array) else None
        if what is not None:
            name = node.name or node.outputs[0].name
            raise FewbitError(
                f"node {name!r} ({node.op_type}): its constant {value.name!r} holds {what}; mend the model"
            )


def _refused(node: Any, index: int, array: np.ndarray) -> bool:
    """Whether infinities in it leave nothing finite: adding one away from the top is a mask, and Clip, Max and Min have
    bounds."""
    if node.op_type in ("Clip", "Max", "Min", "Pow"):
        return False
    if node.op_type == "Add":
        return bool(np.isposinf(array).any())
    if node.op_type == "Sub":
        return bool((np.isposinf if index == 0 else np.isneginf)(array).any())
    return bool(np.isinf(array).any())


def _constant(value: Any) -> np.ndarray | None:
    """An initializer, or what a Constant node holds."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Constant":
        return array_of(value)
    for name in ("value", "value_float", "value_floats"):
        if (held := maker.attributes.get(name)) is not None:
            return held.value.numpy() if name == "value" else np.asarray(held.value, np.float32)
    return None
