"""The numbers that integer operations need, from scales: int32 biases, multipliers, code bounds, tables.

``acc = Σ (q_x − z_x) q_w + q_b``, ``q_b = round(b / (s_x s_w))``, ``q_y = clamp(round(M acc) + z_y)``, ``M = s_x s_w /
s_y`` (arXiv 1712.05877, sections 2.2 and 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.integer.ir import Affine, Network, Node, Weight

_INT32 = torch.iinfo(torch.int32)
_LARGEST_BIAS = 2.0**30  # leaves as much for the products


@dataclass(frozen=True)
class LayerNumbers:
    """What a convolution or linear layer computes with.

    Attributes:
        x: The quantizer of its input.
        y: The quantizer of its output, None where the output stays an accumulator.
        codes: int8 weight codes ``[out, in/groups, *kernel]``.
        bias: int32 ``[out]``, in units of ``step``.
        step: float64 ``[out]``, ``s_x s_w``: the value of one unit of the accumulator.
        low: The smallest output code, the absorbed activation included.
        high: The largest.
    """

    x: Affine
    y: Affine | None
    codes: Tensor
    bias: Tensor
    step: Tensor
    low: int
    high: int

    @property
    def multiplier(self) -> Tensor:
        """float64 ``[out]``, ``s_x s_w / s_y``."""
        assert self.y is not None
        return self.step / self.y.scale


def layer_numbers(network: Network, node: Node) -> LayerNumbers:
    """The numbers of an integer layer.

    Raises:
        FewbitError: A bias or a sum of products does not fit 32 bits; the message names the layer.
    """
    assert node.weight is not None
    x, y = network.affine[node.inputs[0]], network.affine.get(node.name)
    step = node.weight.scale.to(torch.float64) * x.scale
    bias = torch.round(node.weight.bias.to(torch.float64) / step)
    widest = max(x.qmax - x.zero_point, x.zero_point - x.qmin)
    sums = node.weight.codes.to(torch.int64).abs().flatten(1).sum(1) * widest + bias.abs().to(torch.int64)
    if int(sums.max()) > _INT32.max:
        raise FewbitError(f"layer {node.layer}: sums of its products need more than 32 bits; skip it with a rule")
    low, high = code_bounds(node, y)
    return LayerNumbers(x, y, node.weight.codes, bias.to(torch.int32), step, low, high)


def fit_biases(network: Network) -> None:
    """Coarser weight scales for channels whose bias would not fit 32 bits in units of ``s_x s_w``.

    Such channels are all but dead: their weights are less than 2^-22 of the bias, so their codes lose nothing that
    shows. TensorFlow Lite's quantizer does the same.
    """
    for node in network.layers():
        weight = node.weight
        assert weight is not None
        needed = weight.bias.to(torch.float64).abs() / (network.affine[node.inputs[0]].scale * _LARGEST_BIAS)
        scale = torch.maximum(weight.scale.to(torch.float64), needed)
        if bool((scale > weight.scale).any()):
            rounded = scale.to(torch.float32)
            ratio = (weight.scale.to(torch.float64) / rounded).reshape(-1, *[1] * (weight.codes.dim() - 1))
            codes = torch.round(weight.codes.to(torch.float64) * ratio).to(torch.int8)
            node.weight = Weight(codes, rounded, weight.bias)


def code_bounds(node: Node, y: Affine | None) -> tuple[int, int]:
    """The smallest and the largest code that an operation's output can have."""
    if y is None:
        return 0, 0
    if node.clip is None:
        return y.qmin, y.qmax
    return y.code(node.clip[0]), y.code(node.clip[1])


def table(network: Network, node: Node) -> Tensor:
    """The output code of every input code, ``[256]`` from the smallest code on: a function computed in float64 once.

    Raises:
        FewbitError: The function is not finite somewhere in its input's range.
    """
    x, y = network.affine[node.inputs[0]], network.affine[node.name]
    codes = torch.arange(x.qmin, x.qmax + 1)
    values = (codes.to(torch.float64) - x.zero_point) * x.scale
    assert node.target is not None
    result: Tensor = node.target(values)
    if node.clip is not None:
        result = result.clamp(*node.clip)
    if not bool(torch.isfinite(result).all()):
        raise FewbitError(f"{node.name} is not finite for every code of its input; it cannot be a table")
    return y.quantize(result)


def average_count(node: Node, shape: tuple[int, ...]) -> int:
    """How many values an average takes in."""
    kernel = node.detail["kernel"]
    return int(kernel[0] * kernel[1]) if kernel is not None else int(shape[-1] * shape[-2])
