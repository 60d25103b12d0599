"""Hugging Face models: the class's name in `transformers` and the model's config.

The skeleton is ``transformers.<class>(config)``, with fewbit's layers put in the place of the float ones.
Only models that `transformers` itself ships are taken, by their name in its top namespace, and only with a
config that makes it fetch nothing: see `_FORBIDDEN`. Parameters are made on the meta device, so that no
weights are drawn; buffers are made for real, because rotary frequencies and the like are not in the state
dict. A buffer that the config alone does not bring back bit for bit is saved with the weights.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fewbit.errors import require
from fewbit.formats.architecture import filling, layers, tree
from fewbit.formats.architecture.description import Description, Slot, members_of
from fewbit.formats.architecture.values import DTYPES, Json, Undescribable
from fewbit.nn.experts import has_split_experts, split_experts


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Members of a config, at any depth, that make transformers load code, kernels or other weights.
_FORBIDDEN = _words(
    """auto_map custom_pipelines trust_remote_code code_revision quantization_config kernel_config use_kernels
    backbone backbone_kwargs use_pretrained_backbone use_timm_backbone index_path passages_path"""
)
# Members that say where a model came from or how it is computed here; they are not saved.
_DROPPED = _words(
    """_name_or_path name_or_path _commit_hash transformers_version attn_implementation _attn_implementation
    _attn_implementation_internal _attn_implementation_autoset experts_implementation _experts_implementation
    _experts_implementation_internal"""
)
_ATTENTION = ("eager", "sdpa")
_GENERATION = _words(
    """bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    max_length max_new_tokens min_length min_new_tokens do_sample num_beams temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size use_cache early_stopping suppress_tokens
    begin_suppress_tokens"""
)
_DETAILS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "attention": (str, type(None)),
    "generation": (dict, type(None)),
    "split_experts": bool,
}


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
    found, own_config = _model_class(sys.modules["transformers"], name), cast(Any, model).config
    if found is not type(model) or type(own_config) is not cast(Any, found).config_class:
        raise Undescribable(f"{name}, which transformers does not ship")
    config = json.loads(own_config.to_json_string(use_diff=False))
    config = _without_forbidden(config)
    attention = getattr(own_config, "_attn_implementation", None)
    details: dict[str, Json] = {
        "config": config,
        "attention": attention if attention in _ATTENTION else None,
        "generation": _generation(model),
        "split_experts": has_split_experts(model),
    }
    skeleton = _build_float(name, details)
    modules = _differences(model, skeleton)
    constants = _different_buffers(model, skeleton)
    expected = skeleton.state_dict(keep_vars=True)
    slots = {path: slot for path, slot in tree.own_tensors(model)[0].items() if slot.kind != "constant"}
    slots = {path: slot for path, slot in slots.items() if path not in expected}
    slots |= {path: Slot.of(tensor, "constant") for path, tensor in constants.items()}
    return Description("huggingface", name, details, modules, slots, constants=constants)


def build(description: Description) -> nn.Module:
    """Build the skeleton of a model that `describe` described; its parameters hold nothing yet.

    Raises:
        ValueError: The description is not one that `describe` can have written.
        MissingExtraError: transformers is not installed.
    """
    details = {"split_experts": False, **description.details}  # files of before there were any lack it
    members_of(details, _DETAILS)
    model = _build_float(description.class_name, details)
    return filling.fill(model, description)


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
    if details["split_experts"]:
        split_experts(model)
    if details["generation"] is not None:
        if not details["generation"].keys() <= _GENERATION:
            raise ValueError("an unknown setting of generation")
        model.generation_config = transformers.GenerationConfig(**details["generation"])
    return model.eval()


def _without_forbidden(config: Any) -> Any:
    """The config without the members that are not saved; one that would load something may not be set.

    Raises:
        Undescribable: A forbidden member has a value, or a type is none of torch's.
    """
    if isinstance(config, list):
        return [_without_forbidden(each) for each in config]
    if not isinstance(config, dict):
        return config
    kept = {}
    for key, value in config.items():
        if key in _FORBIDDEN or key in _DROPPED:
            if value and key in _FORBIDDEN:
                raise Undescribable(f"a config with {key}")
            continue
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and value not in DTYPES:
            raise Undescribable("a config of an unknown type of tensor")
        if key == "model_type" and "timm" in str(value):
            raise Undescribable("a config that takes its model from timm")
        kept[key] = _without_forbidden(value)
    return kept


def _generation(model: nn.Module) -> Json:
    """The settings of generation that are plain values; transformers takes the others from the config."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return None
    values = json.loads(settings.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key in _GENERATION and value is not None}


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Models of transformers that are made in the block have parameters on the meta device, and fetch nothing."""
    with _empty_parameters(), _offline():
        yield


@contextlib.contextmanager
def _empty_parameters() -> Iterator[None]:
    """Move each parameter that this thread registers in the block to the meta device, before it is drawn."""
    thread = threading.get_ident()

    def hook(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from the network in the block, whatever a config asks for."""
    constants: Any = require("huggingface_hub.constants", "llm")
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
        own = dict(ours._modules)
        if layers.is_in_place(ours):
            own.pop("weight")
            if earlier == path:
                found[path] = layers.describe(ours)
        if type(ours) is not type(theirs) or own.keys() != theirs._modules.keys():
            raise Undescribable(f"its part {path or 'at the top'} of class {type(ours).__name__}")
        for name in reversed(own):
            child, other = own[name], theirs._modules[name]
            if child is not None and other is not None:
                pairs.append((f"{path}.{name}" if path else name, child, other))
            elif child is not other:
                raise Undescribable(f"its part {path}.{name}, which is missing")
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
