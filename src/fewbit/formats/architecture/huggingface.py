"""Hugging Face models: the class's name in `transformers` and the model's config.

The skeleton is ``transformers.<class>(config)``, with fewbit's layers put in the place of the float ones. Only models
that `transformers` itself ships are taken, by their name in its top namespace, and only with a config that
makes it fetch nothing: see `_FORBIDDEN`. Parameters are made on the meta device, so that no weights are drawn;
buffers are made for real, because rotary frequencies and the like are not in the state dict. A buffer that
the config alone does not bring back bit for bit is saved with the weights.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fewbit.errors import require
from fewbit.formats.architecture import layers, tree
from fewbit.formats.architecture.description import Description, Slot, members_of
from fewbit.formats.architecture.values import DTYPES, Json, Undescribable

# Members of a config, at any depth, that make transformers load code, kernels or other weights from elsewhere.
_FORBIDDEN = frozenset(
    """auto_map custom_pipelines trust_remote_code code_revision quantization_config kernel_config use_kernels
    backbone backbone_kwargs use_pretrained_backbone use_timm_backbone index_path passages_path
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation _experts_implementation _experts_implementation_internal""".split()
)
_DROPPED = ("_name_or_path", "transformers_version")
_ATTENTION = ("eager", "sdpa")
_GENERATION = frozenset(
    """bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    max_length max_new_tokens min_length min_new_tokens do_sample num_beams temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size use_cache early_stopping suppress_tokens
    begin_suppress_tokens""".split()
)
_DETAILS = {"config": dict, "attention": (str, type(None)), "generation": (dict, type(None))}


def is_model(model: nn.Module) -> bool:
    """Whether the model is one of transformers' own kind, shipped with it or not."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def describe(model: nn.Module) -> Description:
    """Describe a model of a class that `transformers` ships.

    Raises:
        Undescribable: It is no such model, or its config does not bring back the same architecture.
    """
    if not is_model(model):
        raise Undescribable("a model that is none of transformers")
    name = type(model).__name__
    if _model_class(sys.modules["transformers"], name) is not type(model) or type(model.config) is not type(model).config_class:
        raise Undescribable(f"{name}, which transformers does not ship")
    config = json.loads(model.config.to_json_string(use_diff=False))
    for key in _DROPPED:
        config.pop(key, None)
    config = _without_forbidden(config)
    attention = getattr(model.config, "_attn_implementation", None)
    details: dict[str, Json] = {
        "config": config,
        "attention": attention if attention in _ATTENTION else None,
        "generation": _generation(model),
    }
    skeleton = _build_float(name, details)
    modules = _differences(model, skeleton)
    constants = _different_buffers(model, skeleton)
    slots = {path: Slot.of(tensor, "constant") for path, tensor in constants.items()}
    return Description("huggingface", name, details, modules, slots, constants)


def build(description: Description) -> nn.Module:
    """Build the skeleton of a model that `describe` described; its parameters hold nothing yet.

    Raises:
        ValueError: The description is not one that `describe` can have written.
        MissingExtraError: transformers is not installed.
    """
    members_of(description.details, _DETAILS)
    model = _build_float(description.class_name, description.details)
    return fill(model, description)


def fill(model: nn.Module, description: Description) -> nn.Module:
    """Put the description's layers and constants in the places of the float model's own, in place.

    Raises:
        ValueError: The float model lacks a place for one of them.
    """
    for path, described in description.modules.items():
        model = tree.replace(model, path, tree.build_module(described, model))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for path, slot in description.tensors.items():
        if slot.kind != "constant":
            raise ValueError("a tensor that the float model does not have")
        if path in buffers:
            owner, _, name = path.rpartition(".")
            tree.find(model, owner)._buffers[name] = slot.empty()
    return model.eval()


def _model_class(transformers: Any, name: str) -> Any:
    """The model class of that name in the top namespace of transformers, else None."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,100}", name) or "Timm" in name:
        return None
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return None
    return found if found.__module__.startswith("transformers.models.") else None


def _build_float(name: str, details: dict[str, Any]) -> nn.Module:
    transformers = require("transformers", "llm")
    found = _model_class(transformers, name)
    if found is None:
        raise ValueError(f"the model class {name[:60]!r}, which transformers does not ship")
    if _without_forbidden(details["config"]) != details["config"]:
        raise ValueError("a config that would load something else")
    if details["attention"] not in (*_ATTENTION, None):
        raise ValueError("an unknown way to compute attention")
    config = found.config_class.from_dict(json.loads(json.dumps(details["config"])))
    if details["attention"]:
        config._attn_implementation = details["attention"]
    with _empty_parameters(), _offline():
        model: nn.Module = found(config)
    if details["generation"] is not None:
        if not details["generation"].keys() <= _GENERATION:
            raise ValueError("an unknown setting of generation")
        model.generation_config = transformers.GenerationConfig(**details["generation"])
    return model.eval()


def _without_forbidden(config: Any) -> Any:
    """The config without its members that would load something; one of them being set is refused.

    Raises:
        Undescribable: A forbidden member has a value, or a type is none of torch's.
    """
    if isinstance(config, list):
        return [_without_forbidden(each) for each in config]
    if not isinstance(config, dict):
        return config
    kept = {}
    for key, value in config.items():
        if key in _FORBIDDEN:
            if value:
                raise Undescribable(f"a config with {key}")
            continue
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and value not in DTYPES:
            raise Undescribable("a config of an unknown type of tensor")
        if key == "model_type" and "timm" in str(value):
            raise Undescribable("a config that takes its model from timm")
        kept[key] = _without_forbidden(value)
    return kept


def _generation(model: nn.Module) -> Json:
    """The settings of generation that are plain values; the others stay at what transformers makes of the config."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return None
    values = json.loads(settings.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key in _GENERATION and value is not None}


@contextlib.contextmanager
def _empty_parameters() -> Iterator[None]:
    """Move every parameter that this thread registers in the block to the meta device, before it is initialised."""
    thread = threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from the network in the block, whatever a config asks for."""
    constants = require("huggingface_hub.constants", "llm")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _differences(model: nn.Module, skeleton: nn.Module) -> dict[str, Json]:
    """The layers of ``model`` that the float ``skeleton`` does not have, by path."""
    found: dict[str, Json] = {}
    first: dict[int, str] = {}
    pairs: list[tuple[str, nn.Module, nn.Module]] = [("", model, skeleton)]
    while pairs:
        path, ours, theirs = pairs.pop()
        earlier = first.setdefault(id(ours), path)
        if layers.is_layer(ours):
            described = layers.describe(ours)
            if not layers.is_layer(theirs) or described != layers.describe(theirs):
                found[path] = described if earlier == path else {"same": earlier}
            continue
        if type(ours) is not type(theirs) or ours._modules.keys() != theirs._modules.keys():
            raise Undescribable(f"its part {path or 'at the top'} of class {type(ours).__name__}")
        for name in reversed(ours._modules):
            child, other = ours._modules[name], theirs._modules[name]
            if (child is None) != (other is None):
                raise Undescribable(f"its part {path}.{name}, which is missing")
            if child is not None and other is not None:
                pairs.append((f"{path}.{name}" if path else name, child, other))
    return found


def _different_buffers(model: nn.Module, skeleton: nn.Module) -> dict[str, Tensor]:
    """Buffers outside the state dict whose bits the skeleton does not have already."""
    saved = model.state_dict(keep_vars=True).keys()
    theirs = dict(skeleton.named_buffers(remove_duplicate=False))
    layer_paths = tuple(f"{path}." for path, each in model.named_modules() if layers.is_layer(each))
    return {
        path: tensor
        for path, tensor in model.named_buffers(remove_duplicate=False)
        if path not in saved and not path.startswith(layer_paths) and not _same_bits(tensor, theirs.get(path))
    }


def _same_bits(ours: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or ours.dtype != theirs.dtype or ours.shape != theirs.shape or theirs.is_meta:
        return False
    ours, theirs = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (ours, theirs))
    return torch.equal(ours, theirs)
