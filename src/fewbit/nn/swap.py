"""Putting quantized layers into a model, and finding them there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.nn import kinds
from fewbit.nn.layers import BY_KIND, LAYERS, QuantLayer
from fewbit.nn.weight import QuantizedWeight

IN_PLACE = "in-place"  # the config's class of a user's own layer class that keeps its forward


def swap_layer(model: nn.Module, name: str, weight: QuantizedWeight, bias: Tensor | None) -> nn.Module:
    """Replace the float layer ``name`` by a quantized one; a class with a forward of its own only changes its weight.

    Args:
        model: Changed in place.
        name: The layer's dotted name; every name of a module that is used under several is replaced.
        weight: The quantized weight.
        bias: float32 ``[out]`` or None.

    Returns:
        The model: a new layer when ``name`` is empty (the model is one layer), else ``model`` itself.
    """
    module = model.get_submodule(name)
    assert isinstance(module.weight, Tensor)
    weight.dtype = module.weight.dtype
    if kinds.has_own_forward(module):
        _replace_parameters(module, weight, bias)
        return model
    kind = kinds.kind(module)
    assert kind is not None
    return replace_module(model, module, BY_KIND[kind].from_float(module, weight, bias))


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace ``old`` by ``new`` wherever it stands in the model; the model itself may be ``old``."""
    if model is old:
        return new
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
    return model


def in_training(model: nn.Module) -> list[str]:
    """Names of the layers that train for their quantized form."""
    return [name for name, module in model.named_modules() if getattr(module, "fewbit_in_training", False)]


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Names and modules of the quantized layers; each has a :class:`QuantizedWeight` as ``weight``."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module._modules.get("weight"), QuantizedWeight):
            found[name] = module
    return found


def layer_config(layer: nn.Module) -> dict[str, Any]:
    """The config of a quantized layer, as JSON values."""
    if isinstance(layer, QuantLayer):
        return layer.config()
    bias = getattr(layer, "bias", None)
    size = bias.shape[0] if isinstance(bias, Tensor) else None
    return {"class": IN_PLACE, "weight": quantized_weight(layer).config(), "bias": size}


def quantized_weight(layer: nn.Module) -> QuantizedWeight:
    """The quantized weight of a quantized layer."""
    weight = layer._modules.get("weight")
    assert isinstance(weight, QuantizedWeight)
    return weight


def restore_layer(model: nn.Module, name: str, config: dict[str, Any]) -> nn.Module:
    """Put an empty quantized layer of this config in the place of the float layer ``name``.

    Raises:
        FewbitError: The model has no such layer, or the class of the config is unknown.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise FewbitError(f"the model has no layer {name!r}") from error
    if config["class"] == IN_PLACE:
        bias = None if config["bias"] is None else torch.zeros(int(config["bias"]))
        _replace_parameters(module, QuantizedWeight.from_config(config["weight"]), bias)
        return model
    if config["class"] not in LAYERS:
        raise FewbitError(f"layer {name!r} has an unknown class {config['class']!r}")
    return replace_module(model, module, LAYERS[config["class"]].from_config(config))


def _replace_parameters(module: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> None:
    module._parameters.pop("weight", None)
    module._parameters.pop("bias", None)
    module._modules.pop("weight", None)
    module._buffers.pop("bias", None)
    module.weight = weight
    module.register_buffer("bias", bias)
