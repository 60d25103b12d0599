"""Bias correction on what the quantized network really computes.

Correcting a bias for the rounding of its own weight leaves the mean error that the codes of the input bring along, and
that noise in front of a Relu or Clip becomes. Here layers are taken in the graph's order: with all earlier ones as they
will be, the mean of the output ``E[â]`` behind the activation function is measured in the quantized graph, and the bias
moves it to the float network's ``E[a]``, as far as the difference is more than chance among the samples (empirical bias
correction, Nagel et al., arXiv 1906.04721, appendix D). Where the function is flat the bias moves nothing, so that the
step is divided by the share of values where it is not. A part of the data is used, whose codes at the place where the
walk through the graph is are kept (:mod:`.segments`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fewbit.onnxgraph import observe
from fewbit.onnxgraph.constants import array_of
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.placement import absorbed_function, clip_bounds
from fewbit.onnxgraph.segments import Walk

HELD_BYTES = 256 * 2**20  # of the largest tensor, for all samples, where it is held as float
_LEAST_SHARE = 0.02  # channels that are flat almost everywhere stay as they are


@dataclass
class _Channels:
    """The mean of each sample's channels.

    Attributes:
        axis: Of the channels.
        bounds: Values outside are where the activation function is flat.
        means: float64 ``[samples, channels]``, in pieces.
        inside: How much of each channel lies between the bounds, in pieces alike.
    """

    axis: int
    bounds: tuple[float, float]
    means: list[np.ndarray] = field(default_factory=list)
    inside: list[np.ndarray] = field(default_factory=list)

    def see(self, array: np.ndarray) -> None:
        """Take in one piece; its first axis is that of the samples."""
        axes = tuple(axis for axis in range(1, array.ndim) if axis != self.axis % array.ndim)
        self.means.append(array.mean(axes, dtype=np.float64))
        if self.bounds != (-np.inf, np.inf):
            self.inside.append(((array > self.bounds[0]) & (array < self.bounds[1])).mean(axes))

    def mean(self) -> np.ndarray:
        """float64 ``[samples, channels]``."""
        return np.concatenate(self.means)

    def share(self) -> np.ndarray:
        """How much of each channel lies between the bounds, ``[channels]``."""
        found: np.ndarray = np.concatenate(self.inside).mean(0) if self.inside else np.ones(self.means[0].shape[1])
        return found


def corrected(
    model: Any,
    written: Any,
    layers: list[Layer],
    biases: Mapping[str, Tensor],
    batches: list[Any],
    tell: Callable[[str, int, int], None] | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Biases that give each layer the float network's mean output.

    Args:
        model: The simplified float model.
        written: The quantized one; its biases are changed on the way.
        layers: Those of ``model`` that are quantized.
        biases: What they have so far, float32 ``[out]``; layers without one are left alone.
        batches: A part of the data.
        tell: Called with (stage, layers done, layers in all).
        constants: Of layers whose node is another one in ``written``: the value there that holds the bias.

    Returns:
        float32 ``[out]`` by layer.
    """
    values = _constants(written, layers) | dict(constants or {})
    names = {value.name for node in written.graph for value in node.outputs}
    chosen = [layer for layer in layers if layer.name in biases and layer.name in values]
    floats = {layer.node.inputs[0].name for layer in chosen if layer.name in (constants or {})}
    wanted, size = _measured(model, {_name(layer): _empty(layer) for layer in chosen}, batches)
    batches = _first(batches, HELD_BYTES // max(1, size)) if floats else batches
    found = dict(biases)
    there = [f"{name}_dequantized" if f"{name}_dequantized" in names else name for name in map(_name, chosen)]
    walk = Walk(written, there, batches, floats)
    for step, layer in enumerate(chosen, 1):
        name, seen = _name(layer), _empty(layer)
        walk.look(there[step - 1], seen.see)
        share = wanted[name].share()
        missing = _sure(wanted[name].mean()[: len(seen.mean())] - seen.mean())
        move = np.where(share > _LEAST_SHARE, missing / np.maximum(share, _LEAST_SHARE), 0)
        found[layer.name] = (found[layer.name].double() + torch.from_numpy(move)).float()
        _set_bias(values[layer.name], found[layer.name])
        if tell is not None:
            tell("correct biases", step, len(chosen))
    return found


def _sure(differences: np.ndarray) -> np.ndarray:
    """The mean difference of each channel, drawn to 0 as far as few samples leave it in doubt.

    ``d · d² / (d² + v / n)``, with v the variance between n samples: the linear estimate of least squared error for a
    difference of the size that was seen.
    """
    mean: np.ndarray = differences.mean(0)
    if len(differences) < 2:
        return mean
    doubt = differences.var(0, ddof=1) / len(differences)
    sure: np.ndarray = mean * mean**2 / np.maximum(mean**2 + doubt, 1e-300)
    return sure


def _constants(written: Any, layers: list[Layer]) -> dict[str, Any]:
    """The value of each layer's bias in another graph, where its nodes have their names still."""
    nodes = {node.name: node for node in written.graph}
    found = {}
    for layer in layers:
        node, index = layer.bias_at or (layer.node, 2)
        there = nodes.get(node.name)
        if layer.name in nodes and there is not None and len(there.inputs) > index:
            found[layer.name] = there.inputs[index]
    return found


def _output(layer: Layer) -> Any:
    """The tensor behind a layer and its activation function."""
    function = absorbed_function(layer.output)
    return layer.output if function is None else function.outputs[0]


def _name(layer: Layer) -> str:
    return str(_output(layer).name)


def _empty(layer: Layer) -> _Channels:
    function = absorbed_function(layer.output)
    bounds = None if function is None else clip_bounds(function)
    return _Channels(1 if layer.kind.startswith("Conv") else -1, bounds or (-np.inf, np.inf))


def _measured(model: Any, wanted: dict[str, _Channels], batches: list[Any]) -> tuple[dict[str, _Channels], int]:
    """All tensors seen on all batches, and the bytes of the largest for a sample."""
    sizes = [0]

    def see(tensors: dict[str, np.ndarray], _samples: int) -> None:
        for name, array in tensors.items():
            wanted[name].see(array)
        sizes.extend(array.nbytes // max(1, len(array)) for array in tensors.values())

    observe.stream(model, list(wanted), batches, see)
    return wanted, max(sizes)


def _first(batches: list[Any], samples: int) -> list[Any]:
    """The first batches, as far as they hold no more samples together; at least one."""
    found = list[Any]()
    for batch in batches:
        samples -= max(map(len, _arrays(batch)), default=1)
        if found and samples < 0:
            break
        found.append(batch)
    return found


def _arrays(batch: Any) -> list[Any]:
    """The arrays of a batch that have axes."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    return [value for value in values if getattr(value, "ndim", 0)]


def _set_bias(value: Any, bias: Tensor) -> None:
    """Write a bias, on the scale that it has, into a quantized graph."""
    decode = value.producer()
    if decode is None:
        value.const_value = ir.Tensor(bias.numpy(), name=value.name)
        return
    codes, scale = decode.inputs[0], array_of(decode.inputs[1])
    assert scale is not None
    rounded = np.clip(np.round(bias.double().numpy() / scale.astype(np.float64)), -(2**31 - 1), 2**31 - 1)
    codes.const_value = ir.Tensor(rounded.astype(np.int32), name=codes.name)
