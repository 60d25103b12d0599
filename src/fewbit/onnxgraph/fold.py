"""Fold what follows or precedes a convolution into it: batch norm, a multiplication, an addition, zero padding.

For output channel c: ``γ(Wx + b − μ)/σ + β = (γ/σ)W x + (γ/σ)(b − μ) + β`` (arXiv 1712.05877, section 3.2). Sums are
in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.onnxgraph.constants import add_constant, array_of, attribute, only_use

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def fold_all(model: Any) -> dict[str, int]:
    """Fold in place until nothing is left to fold; how often each kind was."""
    graph = model.graph
    counts = {"batch norms": 0, "additions and multiplications": 0, "paddings": 0}
    for node in list(graph):
        if node.op_type == "Pad":
            counts["paddings"] += _fold_pad(graph, node)
        elif node.op_type == "ReduceMean":
            _mean_to_pool(node)
        elif node.op_type == "MatMul":
            _join_bias(graph, node)
        while node.op_type in _CONVOLUTIONS and (kind := _fold_next(graph, node)):
            counts[kind] += 1
    return counts


def _fold_next(graph: Any, conv: Any) -> str | None:
    """Fold the only reader of a convolution into it, if it is affine in each channel."""
    reader, weight = only_use(conv.outputs[0]), array_of(conv.inputs[1])
    if reader is None or weight is None or weight.dtype != np.float32:
        return None
    bias = array_of(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
    if len(conv.inputs) > 2 and conv.inputs[2] is not None and bias is None:
        return None
    channels = _channels(conv, weight)
    step = _affine(reader, conv.outputs[0], channels, weight.ndim)
    if step is None:
        return None
    factor, offset = step
    shape = _channel_shape(conv, weight)
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        return None
    scaled = (
        weight.astype(np.float64) * factor.reshape(shape) if conv.op_type == "Conv" else _scaled(conv, weight, factor)
    )
    start = np.zeros(channels) if bias is None else bias.astype(np.float64)
    _replace(graph, conv, 1, scaled.astype(np.float32))
    _replace(graph, conv, 2, (start * factor + offset).astype(np.float32))
    _take_over(graph, conv, reader)
    return "batch norms" if reader.op_type == "BatchNormalization" else "additions and multiplications"


def _affine(node: Any, value: Any, channels: int, rank: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and offset of each channel when the node is ``factor · value + offset``, float64 ``[channels]``."""
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, value, channels)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is value
    other = array_of(node.inputs[1] if first else node.inputs[0])
    if other is None or other.dtype != np.float32 or (not first and node.op_type in ("Sub", "Div")):
        return None
    each = _per_channel(other, channels, rank)
    if each is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return one, each if node.op_type == "Add" else -each
    if node.op_type == "Div" and not each.all():
        return None
    return (each if node.op_type == "Mul" else 1 / each), zero


def _batch_norm(node: Any, value: Any, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    found = [array_of(v) for v in node.inputs[1:5]]
    used = [output for output in node.outputs[1:] if output.uses() or output.is_graph_output()]
    if node.inputs[0] is not value or used or attribute(node, "training_mode", 0) or any(a is None for a in found):
        return None
    gamma, beta, mean, variance = (a.astype(np.float64) for a in found if a is not None)
    if len(gamma) != channels:
        return None
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, beta - mean * factor


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """An operand that has one value, or one for each channel on axis 1, as float64 ``[channels]``."""
    if array.size == 1 and array.ndim <= rank:
        return np.full(channels, array.reshape(-1)[0], dtype=np.float64)
    shape = (1,) * (rank - array.ndim) + array.shape
    wanted = (1, channels) + (1,) * (rank - 2)
    return array.reshape(-1).astype(np.float64) if shape == wanted else None


def _channels(conv: Any, weight: np.ndarray) -> int:
    return int(weight.shape[0] if conv.op_type == "Conv" else weight.shape[1] * attribute(conv, "group", 1))


def _channel_shape(conv: Any, weight: np.ndarray) -> tuple[int, ...]:
    return (-1,) + (1,) * (weight.ndim - 1)


def _scaled(conv: Any, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A transposed convolution's weight ``[in, out/groups, …]`` times a factor for each output channel."""
    groups = int(attribute(conv, "group", 1))
    split = weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    each = factor.reshape(groups, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
    scaled: np.ndarray = (split * each).reshape(weight.shape)
    return scaled


def _replace(graph: Any, conv: Any, index: int, array: np.ndarray) -> None:
    """Give a convolution a constant of its own (others may read the old one)."""
    old = conv.inputs[index] if index < len(conv.inputs) else None
    name = f"{conv.name}.{'weight' if index == 1 else 'bias'}" if old is None else f"{old.name}.folded"
    if index >= len(conv.inputs):
        conv.resize_inputs(index + 1)
    conv.replace_input_with(index, add_constant(graph, name, array))


def _take_over(graph: Any, conv: Any, reader: Any) -> None:
    """The convolution gives what its reader gave, under that name."""
    gone = reader.outputs[0]
    kept, name, shape, kind = conv.outputs[0], gone.name, gone.shape, gone.type
    if gone.is_graph_output():
        graph.outputs[list(graph.outputs).index(gone)] = kept
    gone.replace_all_uses_with(kept)
    graph.remove(reader, safe=True)
    gone.name = None
    kept.name, kept.shape, kept.type = name, shape or kept.shape, kind or kept.type


def _fold_pad(graph: Any, pad: Any) -> int:
    """Zero padding of the spatial axes becomes that of the convolutions that read it."""
    pads, value = array_of(pad.inputs[1]), 0.0
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        constant = array_of(pad.inputs[2])
        value = float("nan") if constant is None else float(constant.reshape(-1)[0])
    axes = len(pad.inputs) > 3 and pad.inputs[3] is not None
    readers = [use.node for use in pad.outputs[0].uses()]
    if pads is None or value != 0 or axes or attribute(pad, "mode", "constant") != "constant" or not readers:
        return 0
    rank = len(pads) // 2
    if pads[:2].any() or pads[rank : rank + 2].any() or (pads < 0).any() or pad.outputs[0].is_graph_output():
        return 0
    plain = all(n.op_type == "Conv" and attribute(n, "auto_pad", "NOTSET") in ("NOTSET", "VALID") for n in readers)
    if not plain or any(n.inputs[0] is not pad.outputs[0] for n in readers):
        return 0
    import onnx_ir as ir

    extra = np.concatenate([pads[2:rank], pads[rank + 2 :]])
    for conv in readers:
        own = np.asarray(attribute(conv, "pads", [0] * len(extra)), dtype=np.int64)
        conv.attributes["pads"] = ir.AttrInt64s("pads", (own + extra).tolist())
        conv.attributes.pop("auto_pad", None)
        conv.replace_input_with(0, pad.inputs[0])
    graph.remove(pad, safe=True)
    return 1


def _join_bias(graph: Any, node: Any) -> None:
    """A product of two axes and the constant added to it is Gemm, whose bias adds to the accumulator."""
    reader, weight, shape = only_use(node.outputs[0]), array_of(node.inputs[1]), node.inputs[0].shape
    if (
        reader is None
        or reader.op_type != "Add"
        or weight is None
        or weight.ndim != 2
        or shape is None
        or len(shape) != 2
    ):
        return
    other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    bias = array_of(other)
    if bias is None or bias.dtype != weight.dtype or bias.shape not in ((weight.shape[1],), (1, weight.shape[1])):
        return
    node.op_type = "Gemm"
    node.resize_inputs(3)
    node.replace_input_with(2, add_constant(graph, f"{other.name}.bias", bias.reshape(-1)))
    _take_over(graph, node, reader)


def _mean_to_pool(node: Any) -> None:
    """ReduceMean over the last two of four axes, kept, is GlobalAveragePool, which runtimes compute on integers."""
    shape = node.inputs[0].shape
    axes = attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1:
        constant = array_of(node.inputs[1])
        axes = None if constant is None else constant.tolist()
    if shape is None or len(shape) != 4 or axes is None or not attribute(node, "keepdims", 1):
        return
    if sorted(int(a) % 4 for a in axes) != [2, 3]:
        return
    node.op_type = "GlobalAveragePool"
    node.resize_inputs(1)
    node.attributes.clear()
