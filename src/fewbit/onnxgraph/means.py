"""The mean input of every layer, computed by the runtime beside the forward pass; what bias correction needs.

Each layer's input is averaged over the batch inside the graph, so that one sample's worth of it leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fewbit.algorithms.bias_correction import correction
from fewbit.calibrate.input_mean import InputMean
from fewbit.kernels.products import Geometry
from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph.constants import add_constant, array_of, attribute
from fewbit.onnxgraph.layers import Layer

_SUFFIX = ".mean_over_the_batch"


class Means:
    """Running mean inputs of layers.

    Args:
        layers: Those of a simplified model; transposed convolutions are left out.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = [layer for layer in layers if layer.kind != "ConvTranspose"]
        self._found: dict[str, InputMean] = {}
        self.names = sorted({layer.node.inputs[0].name + _SUFFIX for layer in self.layers})

    @contextmanager
    def computed(self, model: Any) -> Iterator[None]:
        """The graph with the averages in it, for as long as it lasts."""
        added, constants = [], set(model.graph.initializers)
        for value, layer in {id(la.node.inputs[0]): (la.node.inputs[0], la) for la in self.layers}.values():
            added += _average(model, value, layer)
        try:
            yield
        finally:
            model.graph.remove(added, safe=False)
            for name in [name for name in model.graph.initializers if name not in constants]:
                model.graph.initializers.pop(name)

    def see(self, found: dict[str, np.ndarray], samples: int) -> None:
        """Take in one piece of ``samples`` samples."""
        for layer in self.layers:
            mean = torch.from_numpy(found[layer.node.inputs[0].name + _SUFFIX])
            if layer.name not in self._found:
                self._found[layer.name] = InputMean(geometry(layer, tuple(mean.shape[1:])), layer.name)
            self._found[layer.name].update(mean.double() * samples, summed=samples)

    def correction(self, layer: Layer, weight: Tensor, codes: QTensor) -> Tensor | None:
        """What to add to the layer's bias, float64 ``[out]``; None where the layer saw nothing."""
        found = self._found.get(layer.name)
        return None if found is None else correction(weight, codes.dequantize(), found.mean())

    def answers(self, layer: Layer) -> bool:
        """Whether the layer's bias answers for what its inputs' mean tells; a MatMul alone has none."""
        return layer.name in self._found and layer.bias_at is not None


def geometry(layer: Layer, size: tuple[int, ...]) -> Geometry | None:
    """How a convolution walks over an input of a spatial size; None for a product."""
    if layer.kind != "Conv":
        return None
    node = layer.node
    weight = array_of(layer.weight)
    assert weight is not None
    kernel = tuple(int(k) for k in weight.shape[2:])
    stride = tuple(attribute(node, "strides", [1] * len(kernel)))
    dilation = tuple(attribute(node, "dilations", [1] * len(kernel)))
    padding = _padding(node, kernel, stride, dilation, size[-len(kernel) :])
    return Geometry(kernel, stride, padding, dilation, layer.groups)


def _padding(
    node: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    auto = attribute(node, "auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        pads = list(attribute(node, "pads", [0] * 2 * len(kernel))) if auto == "NOTSET" else [0] * 2 * len(kernel)
        return tuple(zip(pads[: len(kernel)], pads[len(kernel) :]))
    both = []
    for k, s, d, n in zip(kernel, stride, dilation, size):
        missing = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        before = missing // 2 if auto == "SAME_UPPER" else missing - missing // 2
        both.append((before, missing - before))
    return tuple(both)


def _average(model: Any, value: Any, layer: Layer) -> list[Any]:
    graph, opset = model.graph, model.graph.opset_imports[""]
    nodes = []
    source = value
    if layer.kind != "Conv":
        shape = add_constant(graph, f"{value.name}.rows", np.array([-1, layer.matrix().shape[1]], np.int64))
        nodes.append(ir.Node("", "Reshape", [value, shape], name=f"{value.name}.rows"))
        source = nodes[-1].outputs[0]
        source.name = f"{value.name}.as_rows"
    inputs, attributes = [source], [ir.AttrInt64("keepdims", 1)]
    if opset >= 18:
        inputs.append(add_constant(graph, f"{value.name}.axes", np.array([0], np.int64)))
    else:
        attributes.append(ir.AttrInt64s("axes", [0]))
    output = ir.Value(name=value.name + _SUFFIX, type=ir.TensorType(ir.DataType.FLOAT))
    nodes.append(ir.Node("", "ReduceMean", inputs, attributes, outputs=[output], name=value.name + _SUFFIX))
    graph.extend(nodes)
    return nodes
