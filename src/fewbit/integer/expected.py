"""The mean input of each layer by batch norm alone, without data (arXiv 1906.04721, section 4.2 and appendix C).

Behind a batch norm each channel is taken to be normal; activation functions clip it, sums add means and variances as if
what they add were independent, averages keep the mean. Borders of zeros are left out of account, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms.bias_correction import clipped_normal
from fewbit.algorithms.equalize import shift
from fewbit.integer.capture import Capture
from fewbit.integer.chains import layers_of
from fewbit.integer.ir import Node
from fewbit.integer.operators import clip_bounds

_ATEN = torch.ops.aten
_FLATTENS = (_ATEN.reshape.default, _ATEN.flatten.using_ints)


@dataclass(frozen=True)
class _Channels:
    """What is known of a tensor's channels.

    Attributes:
        mean: float64 ``[channels]``.
        variance: float64 ``[channels]``; None where it is not known.
        axis: Of the channels, 1 or -1.
    """

    mean: Tensor
    variance: Tensor | None
    axis: int = 1


def expected_inputs(
    found: Capture, model: nn.Module, moments: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The mean of each input channel, float64 ``[in]``, of the layers for which it follows from batch norms.

    Args:
        found: The captured float network.
        model: With the weights.
        moments: Mean and standard deviation of the outputs of the layers whose batch norm was folded.
    """
    layers = {node.name: name for name, node in layers_of(found, model).items()}
    values: dict[str, _Channels] = {}
    inputs: dict[str, Tensor] = {}
    for node in found.nodes:
        name = layers.get(node.name)
        if name is None:
            made = _between(node, values)
        else:
            module: Any = model.get_submodule(name)
            read = values.get(node.inputs[0])
            if read is not None and len(read.mean) == _width(module):
                inputs[name] = read.mean
            made = _output(module, moments.get(name), inputs.get(name))
        if made is not None:
            values[node.name] = made
    return inputs


def mean_rows(module: Any, channels: Tensor) -> Tensor:
    """The mean input as the layer's weight sees it, ``[groups, K]``: each channel at every place of the kernel."""
    groups = getattr(module, "groups", 1)
    places = 1 if isinstance(module, nn.Linear) else module.weight[0, 0].numel()
    return channels.reshape(groups, -1, 1).expand(-1, -1, places).reshape(groups, -1)


def _width(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def _output(module: Any, moments: tuple[Tensor, Tensor] | None, mean: Tensor | None) -> _Channels | None:
    """What a layer puts out: by its batch norm, else the mean by its input's."""
    axis = -1 if isinstance(module, nn.Linear) else 1
    if moments is not None:
        return _Channels(moments[0].double(), moments[1].double() ** 2, axis)
    if mean is None:
        return None
    bias = 0.0 if module.bias is None else module.bias.detach().double()
    return _Channels(shift(module.weight, getattr(module, "groups", 1), mean) + bias, None, axis)


def _between(node: Node, values: Mapping[str, _Channels]) -> _Channels | None:
    """What an operation between layers makes of it; None where nothing is known."""
    read = [values.get(name) for name in node.inputs]
    one = read[0] if read else None
    if one is None:
        return None
    bounds = clip_bounds(node)
    if bounds is not None:
        if one.variance is None:
            return None
        return _Channels(*clipped_normal(one.mean, one.variance.sqrt(), *bounds), one.axis)
    if node.op == "add" and len(read) == 2:
        return _sum(one, read[1])
    if node.op == "pad":
        return one
    if node.op == "avg_pool":
        return _Channels(one.mean, None, one.axis if node.detail.get("keep", True) else -1)
    if node.target in _FLATTENS and one.axis == 1:
        return _Channels(one.mean, None, -1)  # the reader's width tells whether other axes came in
    return None


def _sum(one: _Channels, other: _Channels | None) -> _Channels | None:
    if other is None or len(one.mean) != len(other.mean) or one.axis != other.axis:
        return None
    known = one.variance is not None and other.variance is not None
    variance = one.variance + other.variance if known else None  # type: ignore[operator]
    return _Channels(one.mean + other.mean, variance, one.axis)
