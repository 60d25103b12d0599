"""Quantized layers. Each holds a :class:`~fewbit.nn.weight.QuantizedWeight` and a float bias, and knows its own
shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry
from fewbit.nn import kinds
from fewbit.nn.weight import QuantizedWeight


class QuantLayer(nn.Module):
    """What the quantized layers share. Their arguments are named as those of the torch layers they stand for."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)

    @property
    def input_quantizer(self) -> nn.Module | None:
        """None, static or dynamic."""
        return self.weight.input_quantizer

    def weight_qtensor(self) -> Any:
        """The weight's codes as a matrix ``[out, K]``."""
        return self.weight.weight_qtensor()

    @classmethod
    def from_float(cls, module: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> Self:
        """The quantized counterpart of a float layer."""
        return cls(weight, bias)

    def config(self) -> dict[str, Any]:
        """Everything but the buffers, as JSON values."""
        size = None if self.bias is None else self.bias.shape[0]
        return {"class": type(self).__name__, "weight": self.weight.config(), "bias": size, **self._own_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """An empty layer whose state is loaded afterwards."""
        bias = None if config["bias"] is None else torch.zeros(int(config["bias"]))
        return cls(QuantizedWeight.from_config(config["weight"]), bias, **cls._own_arguments(config))

    def _own_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _own_arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {}


class QuantLinear(QuantLayer):
    """``y = x Wᵀ + b`` for ``x [..., K]``; also stands for Hugging Face's ``Conv1D``."""

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Float in, float out, of the same dtype."""
        own: Any = self._modules  # past nn.Module's lookup, which costs 2 us where caches hold weights
        if "bias" not in self._buffers:
            return self.weight.linear(input, self.bias)
        result: Tensor = own["weight"].linear(input, self._buffers["bias"])
        return result


class AdaptedLinear(QuantLinear):
    """A quantized layer with a trained adapter beside it that no codes can hold: ``y = x Ŵᵀ + b + f·(x Aᵀ) Bᵀ``
    (QLoRA, arXiv 2305.14314, equation 5)."""

    down: Tensor
    up: Tensor

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, down: Tensor, up: Tensor, factor: float) -> None:
        """From the base's parts, A ``[rank, K]``, B ``[N, rank]`` and ``f = α/rank``."""
        super().__init__(weight, bias)
        self.factor = factor
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, input: Tensor) -> Tensor:
        """Float in, float out, of the same dtype."""
        return super().forward(input) + low_rank(input, self.down, self.up, self.factor)

    def _own_config(self) -> dict[str, Any]:
        return {"down": list(self.down.shape), "up": list(self.up.shape), "factor": self.factor}

    @classmethod
    def _own_arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        empty = {key: torch.zeros([int(size) for size in config[key]]) for key in ("down", "up")}
        return {**empty, "factor": float(config["factor"])}


class QuantConv(QuantLayer):
    """A convolution over 1, 2 or 3 axes, grouped and depthwise ones included."""

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        geometry: Geometry,
        border: tuple[str, list[int]] | None = None,
    ) -> None:
        super().__init__(weight, bias)
        self.geometry, self.border = geometry, border

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """One for each spatial axis."""
        return self.geometry.kernel

    @property
    def stride(self) -> tuple[int, ...]:
        """One for each spatial axis."""
        return self.geometry.stride

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, *spatial]`` or ``[C, *spatial]`` in, float out.

        Raises:
            FewbitError: The input has another number of channels.
        """
        _check_channels(input, self.weight.shape[1] * self.geometry.groups, len(self.geometry.kernel))
        if self.border is not None:
            input = F.pad(input, self.border[1], mode=self.border[0])
        return self.weight.conv(input, self.bias, self.geometry)

    @classmethod
    def from_float(cls, module: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> Self:
        """From ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``; reflected, replicated and circular borders are padded in
        float."""
        border = None
        mode: Any = module.padding_mode
        if mode != "zeros":
            sides: Any = module._reversed_padding_repeated_twice
            border = (str(mode), [int(side) for side in sides])
        return cls(weight, bias, kinds.conv_geometry(module), border)

    def _own_config(self) -> dict[str, Any]:
        return {
            "geometry": _geometry_config(self.geometry),
            "border": None if self.border is None else list(self.border),
        }

    @classmethod
    def _own_arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        border = config["border"]
        return {
            "geometry": _geometry_from_config(config["geometry"]),
            "border": None if border is None else (str(border[0]), [int(side) for side in border[1]]),
        }


class QuantConvTranspose2d(QuantLayer):
    """A transposed convolution, as the equivalent convolution of an input with zeros between its values."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, geometry: Geometry, stride: Sequence[int]) -> None:
        super().__init__(weight, bias)
        self.geometry, self.stride = geometry, tuple(stride)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``[N, C, H, W]`` or ``[C, H, W]`` in, float out.

        Raises:
            FewbitError: ``output_size`` is given (set ``output_padding`` on the float layer instead), or the input has
                another number of channels.
        """
        _check_channels(input, self.weight.shape[1] * self.geometry.groups, 2)
        if output_size is not None:
            raise FewbitError("a quantized ConvTranspose2d takes no output_size; set output_padding on the float layer")
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        (top, bottom), (left, right) = self.geometry.padding
        spread = F.pad(_spread(input, self.stride), [left, right, top, bottom])  # negative padding crops
        unpadded = Geometry(self.geometry.kernel, (1, 1), ((0, 0),) * 2, self.geometry.dilation, self.geometry.groups)
        return self.weight.conv(spread, self.bias, unpadded)

    @classmethod
    def from_float(cls, module: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> Self:
        """From ``nn.ConvTranspose2d``."""
        assert isinstance(module, nn.ConvTranspose2d)
        return cls(weight, bias, kinds.transposed_geometry(module), [int(s) for s in module.stride])

    def _own_config(self) -> dict[str, Any]:
        return {"geometry": _geometry_config(self.geometry), "stride": list(self.stride)}

    @classmethod
    def _own_arguments(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {"geometry": _geometry_from_config(config["geometry"]), "stride": [int(s) for s in config["stride"]]}


def _check_channels(x: Tensor, wanted: int, axes: int) -> None:
    """An integer product would not notice: the codes of the next pixel would stand in."""
    if x.dim() not in (axes + 1, axes + 2) or x.shape[-axes - 1] != wanted:
        shape = ", ".join(map(str, x.shape))
        raise FewbitError(f"the input of a quantized convolution is ({shape}), but it takes {wanted} channels")


class QuantEmbedding(QuantLayer):
    """A table of rows, looked up and dequantized; the result has the float layer's dtype."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Values of a row."""
        return self.weight.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        """``[…]`` integers in, ``[…, features]`` out."""
        return self.weight.embedding(input)


LAYERS: dict[str, type[QuantLayer]] = {
    layer.__name__: layer for layer in (QuantLinear, AdaptedLinear, QuantConv, QuantConvTranspose2d, QuantEmbedding)
}

# Which layer stands for which kind of float layer.
BY_KIND: dict[str, type[QuantLayer]] = {
    "Linear": QuantLinear, "Conv1D": QuantLinear, "Embedding": QuantEmbedding, "ConvTranspose2d": QuantConvTranspose2d,
    "Conv1d": QuantConv, "Conv2d": QuantConv, "Conv3d": QuantConv,
}  # fmt: skip


def low_rank(x: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """An adapter's branch ``f·(x Aᵀ) Bᵀ``, in the dtype of ``x``."""
    return F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)) * factor


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Put ``stride − 1`` zeros between the values of the last two axes."""
    if stride == (1, 1):
        return x
    height, width = x.shape[-2:]
    rows, columns = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1
    spread = x.new_zeros(*x.shape[:-2], rows, columns)
    spread[..., :: stride[0], :: stride[1]] = x
    return spread


def _geometry_config(geometry: Geometry) -> dict[str, Any]:
    return {
        "kernel": list(geometry.kernel),
        "stride": list(geometry.stride),
        "padding": [list(pair) for pair in geometry.padding],
        "dilation": list(geometry.dilation),
        "groups": geometry.groups,
    }


def _geometry_from_config(config: dict[str, Any]) -> Geometry:
    axes = {key: tuple(int(v) for v in config[key]) for key in ("kernel", "stride", "dilation")}
    padding = tuple((int(a), int(b)) for a, b in config["padding"])
    return Geometry(axes["kernel"], axes["stride"], padding, axes["dilation"], int(config["groups"]))
