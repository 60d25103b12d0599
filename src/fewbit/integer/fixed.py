"""The network in integer arithmetic alone: between the input's quantizer and the last accumulator there is no float.

Arithmetic is that of TensorFlow Lite's reference kernels (arXiv 1712.05877): int32 accumulators and biases, fixed-point
multipliers, sums of two tensors rescaled to a common scale with 20 extra bits. Operations that the network left in
float are float here, too; :attr:`~fewbit.integer.ir.Network.notes` tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.integer import lower
from fewbit.integer.ir import Affine, Network, Node
from fewbit.integer.multiplier import Multiplier, Rounding, rescale
from fewbit.integer.simulate import compute
from fewbit.kernels import reference

_ADD_SHIFT = 20  # TensorFlow Lite's left shift of both terms of an 8-bit sum


class FixedPoint:
    """Runs a network.

    Args:
        network: The network.
        rounding: How products are rounded, see :mod:`fewbit.integer.multiplier`.
    """

    def __init__(self, network: Network, rounding: Rounding = "double") -> None:
        self.network, self.rounding = network, rounding
        self.prepared: dict[str, Any] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs in float32, in order; an output that is codes or an accumulator is scaled at the very end."""
        values = self.values(*inputs)
        return [self._float(name, values) for name in self.network.outputs]

    def values(self, *inputs: Tensor) -> dict[str, Any]:
        """Every value: int64 codes where it has a quantizer, int64 accumulators of last layers, else float."""
        network = self.network
        if len(inputs) != len(network.inputs):
            raise FewbitError(f"the network has {len(network.inputs)} inputs, not {len(inputs)}")
        values: dict[str, Any] = dict(network.constants)
        for name, x in zip(network.inputs, inputs):
            values[name] = self._codes(name, x)
        for node in network.nodes:
            if node.integer:
                values[node.name] = self.step(node, values)
            else:
                floats = {name: self._float(name, values) for name in node.inputs}
                values[node.name] = self._codes(node.name, compute(node, floats))
        return values

    def _codes(self, name: str, value: Any) -> Any:
        affine = self.network.affine.get(name)
        return value if affine is None else affine.quantize(value).to(torch.int64)

    def _float(self, name: str, values: Mapping[str, Any]) -> Any:
        value, affine = values[name], self.network.affine.get(name)
        if affine is not None:
            return affine.dequantize(value)
        if isinstance(value, Tensor) and value.dtype == torch.int64 and name in self.prepared:
            numbers, _ = self.prepared[name]
            return _last(numbers.step, value).to(torch.float32)
        return value

    def step(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        """The int64 codes (or accumulators) that one integer operation makes of int64 codes."""
        run: Callable[[Node, Mapping[str, Any]], Tensor] = getattr(self, f"_{node.op}")
        return run(node, values)

    def _prepare(self, node: Node, make: Callable[[], Any]) -> Any:
        if node.name not in self.prepared:
            self.prepared[node.name] = make()
        return self.prepared[node.name]

    def _layer(self, node: Node) -> tuple[lower.LayerNumbers, Multiplier | None]:
        def make() -> tuple[lower.LayerNumbers, Multiplier | None]:
            numbers = lower.layer_numbers(self.network, node)
            return numbers, None if numbers.y is None else Multiplier.of(numbers.multiplier)

        made: tuple[lower.LayerNumbers, Multiplier | None] = self._prepare(node, make)
        return made

    def _finish(self, accumulator: Tensor, numbers: lower.LayerNumbers, multiplier: Multiplier | None) -> Tensor:
        """Bias, multiplier, zero point and clamp; channels are the last axis."""
        accumulator = accumulator + numbers.bias
        if multiplier is None or numbers.y is None:
            return accumulator
        scaled = rescale(accumulator, multiplier, self.rounding) + numbers.y.zero_point
        return scaled.clamp_(numbers.low, numbers.high)

    def _linear(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        numbers, multiplier = self._layer(node)
        centred = (values[node.inputs[0]] - numbers.x.zero_point).to(torch.int32)
        rows = centred.reshape(-1, centred.shape[-1])
        accumulator = (rows @ numbers.codes.to(torch.int32).t()).to(torch.int64)
        return self._finish(accumulator, numbers, multiplier).reshape(*centred.shape[:-1], -1)

    def _conv(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        numbers, multiplier = self._layer(node)
        geometry = node.geometry
        assert geometry is not None
        centred = (values[node.inputs[0]] - numbers.x.zero_point).to(torch.int32)
        padded = reference._pad(centred, geometry.padding, 0)
        kernel = torch.Size(geometry.kernel)
        patches = reference._patches(padded, kernel, geometry.stride, geometry.dilation)
        axes, groups, weight = len(geometry.kernel), geometry.groups, numbers.codes.to(torch.int32)
        batch, out = patches.shape[0], patches.shape[2 : 2 + axes]
        # [N, groups, out positions, K] by [groups, K, O/groups]
        rows = patches.reshape(batch, groups, -1, out.numel(), kernel.numel()).transpose(2, 3).flatten(3)
        columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
        if columns.shape[2] == 1:
            accumulator = (rows * columns.squeeze(2)[:, None, :]).sum(-1, keepdim=True, dtype=torch.int64)
        else:
            accumulator = (rows @ columns).to(torch.int64)
        by_channel = accumulator.permute(0, 2, 1, 3).reshape(batch, out.numel(), -1)
        return self._finish(by_channel, numbers, multiplier).transpose(1, 2).reshape(batch, -1, *out)

    def _add(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        affine = self.network.affine
        (a, b), y = ([affine[name] for name in _both(node)], affine[node.name])

        def make() -> tuple[Multiplier, Multiplier, Multiplier]:
            widest = 2 * max(a.scale, b.scale)
            back = widest / (2**_ADD_SHIFT * y.scale)
            return Multiplier.of(a.scale / widest), Multiplier.of(b.scale / widest), Multiplier.of(back)

        of_a, of_b, back = self._prepare(node, make)
        left, right = (
            rescale((values[name] - own.zero_point) << _ADD_SHIFT, by, self.rounding)
            for name, own, by in zip(_both(node), (a, b), (of_a, of_b))
        )
        return self._clamped(node, rescale(left + right, back, self.rounding) + y.zero_point)

    def _mul(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        affine = self.network.affine
        (a, b), y = ([affine[name] for name in _both(node)], affine[node.name])
        by = self._prepare(node, lambda: Multiplier.of(a.scale * b.scale / y.scale))
        left, right = (values[name] - own.zero_point for name, own in zip(_both(node), (a, b)))
        return self._clamped(node, rescale(left * right, by, self.rounding) + y.zero_point)

    def _concat(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        y = self.network.affine[node.name]
        parts = [self._moved(values[name], self.network.affine[name], y) for name in node.inputs]
        return self._clamped(node, torch.cat(parts, dim=node.detail["axis"]))

    def _moved(self, codes: Tensor, x: Affine, y: Affine) -> Tensor:
        """Codes of one scale in another."""
        if (x.scale, x.zero_point) == (y.scale, y.zero_point):
            return codes
        return rescale(codes - x.zero_point, Multiplier.of(x.scale / y.scale), self.rounding) + y.zero_point

    def _avg_pool(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        x, y = self.network.affine[node.inputs[0]], self.network.affine[node.name]
        centred = values[node.inputs[0]] - x.zero_point
        count = lower.average_count(node, tuple(centred.shape))
        sums = sums_of_windows(node, centred)
        by = self._prepare(node, lambda: Multiplier.of(x.scale / (count * y.scale)))
        return self._clamped(node, rescale(sums, by, self.rounding) + y.zero_point)

    def _max_pool(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        # torch has no integer pooling; float64 holds codes exactly and only compares them.
        as_double = {**values, node.inputs[0]: values[node.inputs[0]].to(torch.float64)}
        return self._clamped(node, node.call(as_double).to(torch.int64))

    def _view(self, node: Node, values: Mapping[str, Any]) -> Any:
        return node.call(values)

    def _resize(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        as_double = {**values, node.inputs[0]: values[node.inputs[0]].to(torch.float64)}
        result: Tensor = node.call(as_double)
        return result.to(torch.int64)

    def _pad(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        zero = self.network.affine[node.name].zero_point
        return torch.nn.functional.pad(values[node.inputs[0]], node.detail["sides"], value=zero)

    def _table(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        entries: Tensor = self._prepare(node, lambda: lower.table(self.network, node).to(torch.int64))
        return entries[values[node.inputs[0]] - self.network.affine[node.inputs[0]].qmin]

    def _clamped(self, node: Node, codes: Tensor) -> Tensor:
        low, high = lower.code_bounds(node, self.network.affine[node.name])
        return codes.clamp(low, high)


def _both(node: Node) -> tuple[str, str]:
    """The names of both terms, also where they are the same value."""
    return node.inputs[0], node.inputs[-1]


def _last(step: Tensor, value: Tensor) -> Tensor:
    """``step`` along the channel axis: the last of a matrix, axis 1 of a picture."""
    if value.dim() > 3 or (value.dim() == 3 and value.shape[1] == len(step) != value.shape[2]):
        return value * step.reshape(1, -1, *[1] * (value.dim() - 2))
    return value * step


def sums_of_windows(node: Node, centred: Tensor) -> Tensor:
    """The integer sums that an average divides."""
    if node.detail["kernel"] is None:
        return centred.sum(dim=(2, 3), keepdim=node.detail["keep"])
    (high, wide), (up, left) = node.detail["kernel"], node.detail["padding"]
    padded = reference._pad(centred, ((up, up), (left, left)), 0)
    windows = reference._patches(padded, torch.Size((high, wide)), node.detail["stride"], (1, 1))
    return windows.sum(dim=(-1, -2))
