"""The network in torch, on int8 products that write uint8 codes: oneDNN where it is exact, float64 units elsewhere.

Inside, every code is a uint8 counted from its smallest code, and pictures lie in channels-last order. Each node becomes
a closure once; a run is a walk over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.integer import lower
from fewbit.integer.ir import Affine, Network, Node
from fewbit.integer.layer_kernels import conv_kernel, linear_kernel
from fewbit.integer.simulate import compute
from fewbit.kernels import activations
from fewbit.numbers.spec import QSpec

Step = Callable[[dict[str, Any]], Any]
_CODES = QSpec.parse("uint8/tensor/asym")


class Fast:
    """Runs a network in torch.

    Args:
        network: The network; weights are prepacked here.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.affine = {name: _unsigned(affine) for name, affine in network.affine.items()}
        self.accumulators: set[str] = set()
        last = {name: index for index, node in enumerate(network.nodes) for name in node.inputs}
        kept = {*network.outputs, *network.constants}
        self.steps: list[tuple[str, Step, list[str]]] = []
        for index, node in enumerate(network.nodes):
            dead = [name for name in dict.fromkeys(node.inputs) if last[name] == index and name not in kept]
            self.steps.append((node.name, self._step(node), dead))
        self.quantizers = {name: _quantizer(affine) for name, affine in self.affine.items()}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs in float32, in order."""
        with torch.no_grad():
            values = self._start(inputs)
            for name, step, dead in self.steps:
                values[name] = step(values)
                for gone in dead:
                    del values[gone]
            return [self._float(name, values[name]) for name in self.network.outputs]

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes of every value that has a quantizer, as the network counts them."""
        with torch.no_grad():
            values = self._start(inputs)
            for name, step, _ in self.steps:
                values[name] = step(values)
        return {
            name: (values[name].to(torch.int16) + affine.qmin).to(affine.dtype)
            for name, affine in self.network.affine.items()
            if isinstance(values[name], Tensor)
        }

    def _start(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        if len(inputs) != len(self.network.inputs):
            raise FewbitError(f"the network has {len(self.network.inputs)} inputs, not {len(inputs)}")
        values: dict[str, Any] = dict(self.network.constants)
        for name, x in zip(self.network.inputs, inputs):
            values[name] = self._quantized(name, x)
        return values

    def _quantized(self, name: str, value: Any) -> Any:
        return self.quantizers[name](value) if name in self.affine else value

    def _float(self, name: str, value: Any) -> Any:
        return self.affine[name].dequantize(value) if name in self.affine else value

    def _step(self, node: Node) -> Step:
        if node.integer:
            make: Callable[[Node], Step] = getattr(self, f"_{node.op}")
            return make(node)
        if node.op == "shape":
            return node.call

        def in_float(values: dict[str, Any]) -> Any:
            floats = {name: self._float(name, values[name]) for name in node.inputs}
            return self._quantized(node.name, compute(node, floats))

        return in_float

    def _conv(self, node: Node) -> Step:
        numbers = lower.layer_numbers(self.network, node)
        assert node.geometry is not None
        kernel, source = conv_kernel(numbers, node.geometry, node.clip), node.inputs[0]
        return lambda values: kernel(values[source])

    def _linear(self, node: Node) -> Step:
        kernel, source = linear_kernel(lower.layer_numbers(self.network, node), node.clip), node.inputs[0]
        return lambda values: kernel(values[source])

    def _add(self, node: Node) -> Step:
        left, right = node.inputs[0], node.inputs[-1]
        a, b, y = self.affine[left], self.affine[right], self.affine[node.name]
        of_a, of_b = a.scale / y.scale, b.scale / y.scale
        shift = y.zero_point - a.zero_point * of_a - b.zero_point * of_b
        low, high = self._bounds(node)

        def add(values: dict[str, Any]) -> Tensor:
            total: Tensor = values[left].to(torch.float32).mul_(of_a).add_(values[right], alpha=of_b).add_(shift)
            return total.round_().clamp_(low, high).to(torch.uint8)

        return add

    def _mul(self, node: Node) -> Step:
        left, right = node.inputs[0], node.inputs[-1]
        a, b, y = self.affine[left], self.affine[right], self.affine[node.name]
        by = a.scale * b.scale / y.scale
        low, high = self._bounds(node)

        def mul(values: dict[str, Any]) -> Tensor:
            product: Tensor = (values[left].to(torch.float32) - a.zero_point) * (
                values[right].to(torch.float32) - b.zero_point
            )
            return product.mul_(by).add_(y.zero_point).round_().clamp_(low, high).to(torch.uint8)

        return mul

    def _concat(self, node: Node) -> Step:
        y, names, axis = self.affine[node.name], node.inputs, node.detail["axis"]
        low, high = self._bounds(node)
        clips = (low, high) != (0, y.qmax)

        def moved(name: str, codes: Tensor) -> Tensor:
            x = self.affine[name]
            if (x.scale, x.zero_point) == (y.scale, y.zero_point):
                return codes
            ratio = x.scale / y.scale
            values = (codes.to(torch.float32) - x.zero_point).mul_(ratio).round_().add_(y.zero_point)
            return values.clamp_(0, y.qmax).to(torch.uint8)

        def concat(values: dict[str, Any]) -> Tensor:
            result = torch.cat([moved(name, values[name]) for name in names], dim=axis)
            return result.clamp_(low, high) if clips else result

        return concat

    def _avg_pool(self, node: Node) -> Step:
        source = node.inputs[0]
        x, y = self.affine[source], self.affine[node.name]
        low, high = self._bounds(node)
        by = x.scale / y.scale
        keep, kernel = node.detail["keep"], node.detail["kernel"]

        def average(values: dict[str, Any]) -> Tensor:
            codes = values[source]
            if kernel is None:
                count = codes.shape[-1] * codes.shape[-2]
                mean: Tensor = (
                    codes.sum(dim=(2, 3), keepdim=keep, dtype=torch.int32).to(torch.float32) / count - x.zero_point
                )
            else:
                centred = codes.to(torch.float32) - x.zero_point
                mean = F.avg_pool2d(centred, kernel, node.detail["stride"], node.detail["padding"])
            return (mean * by).round_().add_(y.zero_point).clamp_(low, high).to(torch.uint8)

        return average

    def _max_pool(self, node: Node) -> Step:
        source = node.inputs[0]

        # torch pools no uint8; float32 holds codes exactly and only compares them.
        def pool(values: dict[str, Any]) -> Tensor:
            pooled: Tensor = node.call({source: values[source].to(torch.float32)})
            return pooled.to(torch.uint8)

        return pool

    def _resize(self, node: Node) -> Step:
        return node.call

    def _view(self, node: Node) -> Step:
        return node.call

    def _pad(self, node: Node) -> Step:
        source, sides, zero = node.inputs[0], node.detail["sides"], self.affine[node.name].zero_point
        return lambda values: F.pad(values[source], sides, value=zero)

    def _table(self, node: Node) -> Step:
        source = node.inputs[0]
        entries = lower.table(self.network, node).to(torch.int16) - self.network.affine[node.name].qmin
        entries = entries.to(torch.uint8)
        return lambda values: entries[values[source].to(torch.int32)]

    def _bounds(self, node: Node) -> tuple[int, int]:
        affine = self.network.affine[node.name]
        low, high = lower.code_bounds(node, affine)
        return low - affine.qmin, high - affine.qmin


def _unsigned(affine: Affine) -> Affine:
    """The same values, codes counted from 0."""
    return Affine(affine.scale, affine.zero_point - affine.qmin, 0, affine.qmax - affine.qmin)


def _quantizer(affine: Affine) -> Callable[[Tensor], Tensor]:
    scale, zero_point = torch.tensor(affine.scale), torch.tensor(affine.zero_point, dtype=torch.int32)

    def quantize(x: Tensor) -> Tensor:
        if affine.qmax != _CODES.qmax:
            return affine.quantize(x)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return activations.quantize_static(x, scale, zero_point, _CODES)

    return quantize
