"""One layer as JSON: a quantized layer by its own config, a layer of torch.nn by its constructor's arguments.

Four forms::

    {"layer": {...}}      one of fewbit's layers, as its config
    {"weight": {...}}     the quantized weight inside a layer of the user's own class, as its config
    {"in-place": {...}}   a layer of the user's own class that exists already and is to get such a weight
    {"nn": "Conv2d", "arguments": {...}}

The arguments of a torch.nn layer are read back from the attributes its constructor sets, which bear the same
names; a second layer built from them must agree with the first in every plain attribute and in every tensor's
shape, or the layer counts as one that cannot be described.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fewbit import nn as quantized
from fewbit.formats.architecture.allowed import LAYERS
from fewbit.formats.architecture.description import members_of
from fewbit.formats.architecture.values import Json, Undescribable, decode, encode

_SKIPPED = {"self", "device", "dtype", "args", "kwargs", "_weight", "_freeze"}


def is_quantized(module: nn.Module) -> bool:
    """Whether the module is one of fewbit's layers, or the weight of one of the user's own class."""
    return type(module) is quantized.QuantizedWeight or type(module) in quantized.LAYERS.values()


def is_in_place(module: nn.Module) -> bool:
    """Whether the module is of the user's own class and had its weight alone quantized."""
    return not is_quantized(module) and isinstance(module._modules.get("weight"), quantized.QuantizedWeight)


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a layer that `describe` knows: one of fewbit's, or a plain one of torch.nn."""
    if is_quantized(module):
        return True
    if LAYERS.get(type(module).__name__) is not type(module) or "forward" in vars(module):
        return False
    if any(is_quantized(each) for each in module.modules()):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)


def describe(module: nn.Module) -> Json:
    """Write a layer for which `is_layer` or `is_in_place` holds as JSON.

    Raises:
        Undescribable: The layer was changed after it was built, so that its constructor cannot make it again.
    """
    if isinstance(module, quantized.QuantizedWeight):
        return {"weight": module.config()}
    if is_quantized(module) or is_in_place(module):
        return {"layer" if is_quantized(module) else "in-place": quantized.layer_config(module)}
    name = type(module).__name__
    arguments = {key: encode(value) for key, value in _arguments(module).items()}
    described: Json = {"nn": name, "arguments": arguments}
    try:
        twin = build(described)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Undescribable(f"a {name} that its own arguments cannot make again") from error
    if _differs(module, twin):
        raise Undescribable(f"a {name} that was changed after it was built")
    return described


def build(described: Json) -> nn.Module:
    """Make the layer that `describe` wrote, with empty tensors (those of torch.nn layers on the meta device).

    Raises:
        ValueError: It is not of `describe`'s form, or names a layer that is not allowed.
    """
    if isinstance(described, dict) and "weight" in described:
        with torch.device("meta"):
            return quantized.QuantizedWeight.from_config(members_of(described, {"weight": dict})["weight"]).eval()
    if isinstance(described, dict) and "layer" in described:
        config = members_of(described, {"layer": dict})["layer"]
        if config.get("class") not in quantized.LAYERS:
            raise ValueError(f"the unknown layer {str(config.get('class'))[:40]!r}")
        with torch.device("meta"):
            return quantized.LAYERS[config["class"]].from_config(config).eval()
    members = members_of(described, {"nn": str, "arguments": dict})
    if members["nn"] not in LAYERS:
        raise ValueError(f"the unknown layer {members['nn'][:40]!r}")
    layer = LAYERS[members["nn"]]
    known = _parameters(layer)
    arguments = {key: decode(value) for key, value in members["arguments"].items()}
    if not arguments.keys() <= known.keys():
        raise ValueError(f"an argument that torch.nn.{members['nn']} does not take")
    with torch.device("meta"):
        return layer(**arguments).eval()


def _parameters(layer: type[nn.Module]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(layer.__init__).parameters)
    if issubclass(layer, nn.RNNBase):
        # Their own constructors are (*args, **kwargs); only the plain RNN chooses its nonlinearity.
        parameters = dict(inspect.signature(nn.RNNBase.__init__).parameters)
        mode = parameters.pop("mode")
        if layer is nn.RNN:
            parameters["nonlinearity"] = mode
        if layer is not nn.LSTM:
            del parameters["proj_size"]
    return {name: each for name, each in parameters.items() if name not in _SKIPPED}


def _arguments(module: nn.Module) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, parameter in _parameters(type(module)).items():
        source = _RENAMED.get((type(module), name), name)
        if not hasattr(module, source):
            if parameter.default is inspect.Parameter.empty:
                raise Undescribable(f"a {type(module).__name__} without its attribute {name}")
            continue
        value = getattr(module, source)
        if isinstance(value, torch.Tensor):
            value = True
        elif value is None and isinstance(parameter.default, bool):
            value = False
        arguments[name] = value
    return arguments


# Where the attribute that tells an argument bears another name. A tensor or None tells True or False.
_RENAMED: dict[tuple[type[nn.Module], str], str] = {
    (nn.MultiheadAttention, "bias"): "in_proj_bias",
    (nn.MultiheadAttention, "add_bias_kv"): "bias_k",
}


def _differs(module: nn.Module, twin: nn.Module) -> bool:
    """Whether two layers differ in more than their tensors' values; only ``twin``'s attributes count."""
    if [name for name, _ in module.named_modules()] != [name for name, _ in twin.named_modules()]:
        return True
    for ours, theirs in zip(module.modules(), twin.modules()):
        plain = {key: value for key, value in vars(theirs).items() if _is_plain(value) and key != "training"}
        if type(ours) is not type(theirs) or any(
            not _is_plain(vars(ours).get(key, theirs)) or vars(ours)[key] != value for key, value in plain.items()
        ):
            return True
    return _shapes(module) != _shapes(twin)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    tensors = (*module.state_dict().items(), *module.named_buffers())
    return [(name, tensor.shape) for name, tensor in tensors]
