"""Layers whose weights and inputs lie on the grid, so that quantizing them loses nothing: quantized outputs must equal
float ones exactly, and whatever goes wrong shows.

Weights are multiples of 2^-6 up to ±127, times a power of two for each output channel; inputs multiples of 2^-5. Every
product and sum is then exact in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.algorithms import rtn
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import PackedWeight, QuantizedWeight, kinds
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer, StaticQuantizer
from fewbit.nn.statistics import dynamic_spec, float_bias
from fewbit.nn.swap import swap_layer
from fewbit.numbers.spec import QSpec

MODES = ["weight-only", "static", "static-symmetric", "dynamic"]


class SameConv2d(nn.Conv2d):
    """TensorFlow's padding, which follows the input's size and may be one longer on the right."""

    def forward(self, input: Tensor) -> Tensor:
        sides = []
        for size, k, s, d in zip(input.shape[2:], self.kernel_size, self.stride, self.dilation):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            sides.append((total // 2, total - total // 2))
        padded = F.pad(input, [side for pair in reversed(sides) for side in pair])
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ScaledEmbedding(nn.Embedding):
    """As in models that multiply by the square root of the width."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx) * 4.0


class HalvedLinear(nn.Linear):
    """Hands its weight on by name, and adds the bias itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input=input * 0.5, weight=self.weight) + self.bias


def ints(*shape: int, most: int = 127) -> Tensor:
    return torch.randint(-most, most + 1, shape).to(torch.float32)


def channel_views(module: nn.Module) -> Iterator[Tensor]:
    """The weights of each output channel, in the module's own layout."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    data = weight.data
    if isinstance(module, nn.ConvTranspose2d):
        each = data.shape[0] // module.groups
        for group in range(module.groups):
            for out in range(data.shape[1]):
                yield data[group * each : (group + 1) * each, out]
    elif kinds.kind(module) == "Conv1D":
        yield from data.t()
    else:
        yield from data


def on_grid(module: nn.Module) -> nn.Module:
    """Put the weights on an int8 grid of its own for each output channel, and the bias on one of 2^-4."""
    for index, channel in enumerate(channel_views(module)):
        values = ints(*channel.shape)
        values.reshape(-1)[index % values.numel()] = 127
        channel.copy_(values.reshape(channel.shape) * 2.0 ** (index % 3 - 6))
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        bias.data.copy_(ints(*bias.shape) / 16)
    return module.eval()


def inputs(*shape: int) -> Tensor:
    """Multiples of 2^-5 whose largest is 127 in each row and, in the middle of the first channel, each sample."""
    x = ints(*shape, most=100) / 32
    x[..., 0] = 127 / 32
    if len(shape) > 2:
        x[(slice(None), 0, *[size // 2 for size in shape[2:]])] = 127 / 32
    return x


def input_quantizer(mode: str, kind: str = "Linear") -> InputQuantizer | None:
    """The quantizer that holds :func:`inputs` exactly."""
    if mode == "weight-only":
        return None
    if mode == "dynamic":
        return DynamicQuantizer(dynamic_spec(QSpec.parse("int8/token/sym"), kind))
    if mode == "static-symmetric":
        return StaticQuantizer(QSpec.parse("int8/tensor/sym"), torch.tensor(1 / 32), None)
    zero_point = torch.tensor(120, dtype=torch.int32)
    return StaticQuantizer(QSpec.parse("uint8/tensor/asym"), torch.tensor(1 / 32), zero_point)


def quantized_weight_of(
    module: nn.Module, spec: str = "int8/channel/sym", quantizer: InputQuantizer | None = None
) -> QuantizedWeight:
    """The float layer's weight by its own range."""
    codes = rtn.quantize_weight(kinds.weight_matrix(module), QSpec.parse(spec), rtn.Options("minmax"))
    weight = module.weight
    assert isinstance(weight, Tensor)
    return QuantizedWeight(PackedWeight(PackedMatrix.pack(codes)), quantizer, kinds.kernel_shape(module), weight.dtype)


def swapped(module: nn.Module, mode: str, spec: str = "int8/channel/sym") -> nn.Module:
    """The quantized counterpart of one layer; the layer is left as it is unless it has a forward of its own."""
    kind = kinds.kind(module)
    assert kind is not None
    weight = quantized_weight_of(module, spec, input_quantizer(mode, kind))
    return swap_layer(module, "", weight, float_bias(module))


def difference(result: Tensor, wanted: Tensor) -> float:
    """Relative to the wanted tensor's norm."""
    return float((result.double() - wanted.double()).norm() / wanted.double().norm())
