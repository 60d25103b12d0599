"""The layers that can be quantized, and their weights as matrices ``[out, K]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewbit.kernels.products import Geometry
from fewbit.nn.intercept import pad_pairs

_CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kind(module: nn.Module) -> str | None:
    """``Linear``, ``Conv1d``, ``Conv2d``, ``Conv3d``, ``ConvTranspose2d``, ``Embedding``, ``Conv1D`` (Hugging Face), or
    None.

    Subclasses count as their base. The output projection of ``nn.MultiheadAttention`` is none: that module uses its
    weight without calling it.
    """
    # The parameter itself, not the attribute: symbolic tracing puts a proxy behind the attribute.
    if module._parameters.get("weight") is not None:
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return None
        if isinstance(module, nn.Linear):
            return "Linear"
        if isinstance(module, nn.Embedding):
            return None if module.max_norm is not None else "Embedding"
        for base in (*_CONVS, nn.ConvTranspose2d):
            if isinstance(module, base):
                return base.__name__
        if any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__):
            return "Conv1D"
    return None


def has_own_forward(module: nn.Module) -> bool:
    """Whether a subclass computes something else than its torch base class."""
    return class_has_own_forward(type(module))


def class_has_own_forward(layer: type[nn.Module]) -> bool:
    """:func:`has_own_forward` of a class."""
    bases: tuple[type[Any], ...] = (nn.Linear, nn.Embedding, *_CONVS, nn.ConvTranspose2d)
    base = next((base for base in bases if issubclass(layer, base)), None)
    return base is not None and layer.forward is not base.forward


def quantizable(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of every layer that can be quantized, in the model's order; a module used twice comes
    once."""
    for name, module in model.named_modules():
        found = kind(module)
        if found is not None:
            yield name, module, found


def weight_matrix(module: nn.Module) -> Tensor:
    """The float weight as float32 ``[out, K]``: one row an output channel, the input channels and kernel behind."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return as_matrix(module, weight.detach().to(torch.float32)).contiguous()


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A tensor in the layout of the module's weight as ``[out, K]``; gradients pass.

    A transposed convolution becomes the equivalent convolution of the input with zeros between its values: channels
    swapped, kernel flipped.
    """
    if kind(module) == "Conv1D":
        return weight.t()
    if isinstance(module, nn.ConvTranspose2d):
        by_group = weight.reshape(module.groups, -1, *weight.shape[1:])
        weight = by_group.transpose(1, 2).flatten(0, 1).flip(-1, -2)
    return weight.reshape(weight.shape[0], -1)


def from_matrix(module: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of :func:`as_matrix`: ``[out, K]`` in the layout of the module's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if kind(module) == "Conv1D":
        return matrix.t()
    if isinstance(module, nn.ConvTranspose2d):
        groups, (inputs, outputs, *kernel) = module.groups, weight.shape
        by_group = matrix.reshape(groups, outputs, inputs // groups, *kernel)
        return by_group.transpose(1, 2).flip(-1, -2).reshape(weight.shape)
    return matrix.reshape(weight.shape)


def weight_matrix_shape(module: nn.Module) -> tuple[int, int]:
    """The shape of a linear's :func:`weight_matrix`, also on the meta device."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    return (columns, rows) if kind(module) == "Conv1D" else (rows, columns)


def matrix_key(module: nn.Module) -> tuple[object, ...]:
    """Equal for layers whose :func:`weight_matrix` is the same: tied weights that are also read the same way."""
    if isinstance(module, nn.ConvTranspose2d):
        return id(module.weight), "transposed", module.groups
    return id(module.weight), "Conv1D" if kind(module) == "Conv1D" else "plain"


def kernel_shape(module: nn.Module) -> tuple[int, ...]:
    """The spatial shape of a convolution's kernel, ``()`` for the others."""
    found = kind(module)
    if found is None or not found.startswith("Conv") or found == "Conv1D":
        return ()
    weight = module.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape[2:])


def conv_geometry(module: nn.Module) -> Geometry:
    """How a ``Conv1d``, ``Conv2d`` or ``Conv3d`` walks. Borders that are not zeros are padded by the layer itself."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel, stride, dilation = tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)
    padding = pad_pairs(module.padding, kernel, dilation)
    if module.padding_mode != "zeros":
        padding = ((0, 0),) * len(kernel)
    return Geometry(kernel, stride, padding, dilation, module.groups)


def transposed_geometry(module: nn.ConvTranspose2d) -> Geometry:
    """The equivalent convolution of the input after ``stride − 1`` zeros were put between its values."""
    kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
    full = [d * (k - 1) for k, d in zip(kernel, dilation)]
    before = [f - p for f, p in zip(full, cast("tuple[int, ...]", module.padding))]  # negative: the result is cropped
    padding = tuple((b, b + int(extra)) for b, extra in zip(before, module.output_padding))
    return Geometry(kernel, (1, 1), padding, dilation, module.groups)
