"""The torch functions that can work on integers: which they are, and what they say about themselves.

Reading a node changes its ``op`` from ``float`` to the integer operation, where there is one, and fills its ``detail``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewbit.integer.ir import Node, Ref

_ATEN = torch.ops.aten
_INFINITY = float("inf")

#: Functions that only move values.
_VIEWS = {
    _ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.permute.default,
    _ATEN.transpose.int, _ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default,
    _ATEN.slice.Tensor, _ATEN.select.int, _ATEN.pixel_shuffle.default, _ATEN.channel_shuffle.default,
    _ATEN.expand.default, _ATEN._unsafe_view.default, _ATEN.unflatten.int,
}  # fmt: skip
_SPLITS = {
    _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.chunk.default, _ATEN.split.sizes, _ATEN.unbind.int,
}  # fmt: skip
#: Functions of each value alone; the first argument is the value, the others are numbers.
_POINTWISE = {
    _ATEN.relu.default, _ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.hardswish.default, _ATEN.hardsigmoid.default,
    _ATEN.sigmoid.default, _ATEN.silu.default, _ATEN.gelu.default, _ATEN.tanh.default, _ATEN.leaky_relu.default,
    _ATEN.elu.default, _ATEN.selu.default, _ATEN.celu.default, _ATEN.mish.default, _ATEN.softplus.default,
    _ATEN.log_sigmoid.default, _ATEN.clamp.default, _ATEN.clamp_min.default, _ATEN.clamp_max.default,
    _ATEN.neg.default, _ATEN.abs.default, _ATEN.exp.default, _ATEN.square.default, _ATEN.pow.Tensor_Scalar,
    _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor,
    _ATEN.add.Scalar, _ATEN.sub.Scalar, _ATEN.mul.Scalar, _ATEN.div.Scalar, _ATEN.rsub.Scalar,
    _ATEN.erf.default, _ATEN.softsign.default if hasattr(_ATEN, "softsign") else _ATEN.relu.default,
}  # fmt: skip
#: Two values of one root are still a function of that root.
_BINARY = {_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.maximum.default}


def read_operator(node: Node, before: Any, after: Any, constants: Mapping[str, Tensor]) -> None:
    """Recognise one node.

    Args:
        node: With ``target``, ``args`` and ``kwargs``; changed in place.
        before: The example value of its first argument.
        after: The example value of its result.
        constants: Tensors of the model; a function that reads one stays in float.
    """
    target: Any = node.target
    if any(name in constants for name in node.inputs):
        return
    if isinstance(after, Tensor) and not after.is_floating_point():
        return
    if target is operator.getitem or target in _VIEWS or target in _SPLITS:
        node.op = "view"
        _without_strides(node)
    elif target in _BINARY and len(_values(node)) == 2:
        _binary(node, target, before, after)
    elif target in _POINTWISE and len(_values(node)) == 1 and isinstance(node.args[0], Ref):
        node.op = "table"
    elif target == _ATEN.cat.default:
        node.op, node.detail = "concat", {"axis": int(node.args[1]) if len(node.args) > 1 else 0}
    elif target == _ATEN.max_pool2d.default:
        node.op = "max_pool"
    elif target in (_ATEN.pad.default, _ATEN.constant_pad_nd.default):
        _pad(node, target)
    elif target in (_ATEN.upsample_nearest2d.vec, _ATEN.upsample_nearest2d.default):
        node.op = "resize"
    else:
        _average(node, target, before, after)


def pointwise(node: Node) -> bool:
    """Whether a node computes each value of its output from that value of its inputs alone."""
    return node.target in _POINTWISE or node.target in _BINARY


def clip_bounds(node: Node) -> tuple[float, float] | None:
    """The ends that an activation clips at, None for what is no clip: ReLU, ReLU6, hardtanh, clamp."""
    target: Any = node.target
    if target == _ATEN.relu.default:
        return 0.0, _INFINITY
    if target == _ATEN.relu6.default:
        return 0.0, 6.0
    numbers: list[Any] = [node.args[i] if len(node.args) > i else None for i in (1, 2)]
    if target == _ATEN.hardtanh.default:
        low, high = numbers
        return (-1.0 if low is None else float(low)), (1.0 if high is None else float(high))
    if target == _ATEN.clamp_min.default:
        return float(numbers[0]), _INFINITY
    if target == _ATEN.clamp_max.default:
        return -_INFINITY, float(numbers[0])
    if target == _ATEN.clamp.default:
        low = node.kwargs.get("min", numbers[0])
        high = node.kwargs.get("max", numbers[1])
        return (-_INFINITY if low is None else float(low)), (_INFINITY if high is None else float(high))
    return None


def _values(node: Node) -> list[Any]:
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, Ref)]


def _binary(node: Node, target: Any, before: Any, after: Any) -> None:
    """A sum or a product of two tensors; ``alpha`` other than 1, differences and quotients stay in float."""
    shapes_known = isinstance(before, Tensor) and isinstance(after, Tensor)
    if not shapes_known or node.kwargs.get("alpha", 1) != 1:
        return
    if target == _ATEN.add.Tensor:
        node.op = "add"
    elif target == _ATEN.mul.Tensor:
        node.op = "mul"


def _pad(node: Node, target: Any) -> None:
    """A border of zeros: the code of 0 is the zero point."""
    mode = node.args[2] if target == _ATEN.pad.default and len(node.args) > 2 else "constant"
    position = 3 if target == _ATEN.pad.default else 2
    value = node.args[position] if len(node.args) > position else node.kwargs.get("value")
    if mode == "constant" and not value and all(isinstance(side, int) and side >= 0 for side in node.args[1]):
        node.op, node.detail = "pad", {"sides": tuple(node.args[1])}


def _average(node: Node, target: Any, before: Any, after: Any) -> None:
    """Averages: over a kernel without a border, or over whole axes."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return
    if target == _ATEN.mean.dim and before.dim() == 4:
        axes = sorted(axis % 4 for axis in node.args[1])
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        if axes == [2, 3]:
            node.op, node.detail = "avg_pool", {"kernel": None, "keep": keep}
    elif target == _ATEN.adaptive_avg_pool2d.default and before.dim() == 4:
        if all(int(size) == 1 for size in node.args[1]):
            node.op, node.detail = "avg_pool", {"kernel": None, "keep": True}
    elif target == _ATEN.avg_pool2d.default and before.dim() == 4:
        kernel, stride, padding, ceil, include, divisor = _avg_pool_arguments(node)
        if not ceil and divisor is None and (include or not any(padding)):
            node.op, node.detail = "avg_pool", {"kernel": kernel, "stride": stride, "padding": padding, "keep": True}


def _avg_pool_arguments(node: Node) -> tuple[Any, ...]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = {**dict(zip(names, node.args[1:])), **node.kwargs}

    def pair(value: Any) -> tuple[int, int]:
        both = tuple(value) if isinstance(value, list | tuple) else (value,)
        return (int(both[0]), int(both[-1]))

    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"]) if given.get("stride") else kernel
    rest = (given.get("ceil_mode", False), given.get("count_include_pad", True), given.get("divisor_override"))
    return kernel, stride, pair(given.get("padding", 0)), *rest


def _without_strides(node: Node) -> None:
    """``view`` asks for strides that codes in channels-last order do not have; ``reshape`` does not."""
    if node.target in (_ATEN.view.default, _ATEN._unsafe_view.default):
        node.target = _ATEN.reshape.default
