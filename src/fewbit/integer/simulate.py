"""The network in float32 with every integer tensor rounded to its codes: what training and calibration see.

``x̂ = s·(q − z)`` after each operation whose output is an integer; weights are dequantized; no bias is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.integer.ir import Affine, Node
from fewbit.kernels.products import Geometry

See = Callable[[str, Tensor], None]
_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def simulate(
    nodes: Sequence[Node],
    named_inputs: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    affine: Mapping[str, Affine],
    outputs: Iterable[str],
    see: See | None = None,
) -> list[Any]:
    """Run nodes in order.

    Args:
        nodes: Each after those it reads.
        named_inputs: Float values of the network's inputs.
        constants: Tensors that float operations read.
        affine: Quantizers; a value without one stays in float.
        outputs: The values to return, in order.
        see: Told the name and the float value of everything that is made, before it is rounded.

    Returns:
        The outputs, in float.
    """
    outputs = list(outputs)
    values: dict[str, Any] = dict(constants)
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}

    def keep(name: str, value: Any) -> None:
        if see is not None and isinstance(value, Tensor):
            see(name, value)
        values[name] = _rounded(value, affine.get(name))

    with torch.no_grad():
        for name, value in named_inputs.items():
            keep(name, value)
        for index, node in enumerate(nodes):
            keep(node.name, compute(node, values))
            for name in node.inputs:
                if last[name] == index and name not in outputs and name not in constants:
                    values.pop(name, None)
    return [values[name] for name in outputs]


def _rounded(value: Any, affine: Affine | None) -> Any:
    return value if affine is None else affine.dequantize(affine.quantize(value))


def compute(node: Node, values: Mapping[str, Any], clip: bool = True) -> Any:
    """The float result of one node, its absorbed activation included or not."""
    result = _compute(node, values)
    if clip and node.clip is not None:
        low, high = node.clip
        result = result.clamp(low, high)
    return result


def _compute(node: Node, values: Mapping[str, Any]) -> Any:
    if node.op == "linear":
        assert node.weight is not None
        return F.linear(values[node.inputs[0]], dequantized(node), node.weight.bias)
    if node.op == "conv":
        assert node.geometry is not None
        assert node.weight is not None
        return float_conv(values[node.inputs[0]], dequantized(node), node.weight.bias, node.geometry)
    return node.call(values)


def dequantized(node: Node) -> Tensor:
    """The float weight of a layer, made once."""
    if "float weight" not in node.detail:
        assert node.weight is not None
        scale = node.weight.scale.reshape(-1, *[1] * (node.weight.codes.dim() - 1))
        node.detail["float weight"] = node.weight.codes.to(torch.float32) * scale
    weight: Tensor = node.detail["float weight"]
    return weight


def float_conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution with a border of its own before and after each axis."""
    padding: tuple[int, ...] = tuple(before for before, _ in geometry.padding)
    if any(before != after for before, after in geometry.padding):
        x = F.pad(x, [side for pair in reversed(geometry.padding) for side in pair])
        padding = (0,) * len(padding)
    conv = _CONVS[len(padding)]
    return conv(x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups)
