"""Which tensors of a checkpoint make which parameters of a model.

Checkpoints name and cut their tensors as they did when they were written: without the prefix of a head, a fused matrix
in parts, one tensor an expert. transformers knows how each of its architectures is converted; its own tables are used
where it has them (version 5), else names must agree up to the prefix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.nn.experts import is_fused


@dataclass
class Origin:
    """Tensors of a checkpoint that together make one or more parameters.

    Attributes:
        parameters: What they make.
        keys: Their names in the checkpoint, each with the pattern by which the converter knows it.
        converter: Of transformers; None where the one tensor is the parameter.
    """

    parameters: list[str]
    keys: list[tuple[str, str]] = field(default_factory=list)
    converter: Any = None

    def make(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters' values.

        Raises:
            FewbitError: transformers cannot convert the tensors.
        """
        if self.converter is None:
            return {self.parameters[0]: read(self.keys[0][0])}
        converter = copy.deepcopy(self.converter)
        for key, pattern in self.keys:
            converter.add_tensor(self.parameters[0], key, pattern, lambda key=key: read(key))
        try:
            made = converter.convert(self.parameters[0], model=model, config=getattr(model, "config", None))
        except FewbitError:
            raise
        except Exception as error:  # whatever transformers' operations raise on shapes they do not expect
            raise FewbitError(
                f"the tensors {self.keys[0][0]} … cannot be converted to {self.parameters[0]}: {error}"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass
class SplitOrigin(Origin):
    """Fused experts, cut into the weights that :func:`fewbit.nn.experts.split_experts` names."""

    fused: Origin | None = None

    def make(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The experts' weights."""
        assert self.fused is not None
        return {
            name: part
            for fused, whole in self.fused.make(model, read).items()
            for name, part in zip(_expert_names(fused, len(whole)), _expert_parts(fused, whole))
        }


def split_origins(model: nn.Module, found: dict[str, Origin]) -> dict[str, Origin]:
    """The origins of a model's parameters after its fused experts were split.

    Args:
        model: As it was before.
        found: Its origins.
    """
    fused = [f"{name}." for name, module in model.named_modules() if is_fused(module)]
    if not fused:
        return found
    state = model.state_dict()
    made: dict[str, Origin] = {}
    for name, origin in found.items():
        if not name.startswith(tuple(fused)):
            made[name] = origin
            continue
        names = [part for target in origin.parameters for part in _expert_names(target, len(state[target]))]
        made.update(dict.fromkeys(names, SplitOrigin(names, origin.keys, None, origin)))
    return made


def _expert_names(fused: str, experts: int) -> list[str]:
    owner, _, key = fused.rpartition(".")
    parts = ("gate_proj", "up_proj") if key == "gate_up_proj" else (key,)
    return [f"{owner}.{number}.{part}.weight" for number in range(experts) for part in parts]


def _expert_parts(fused: str, whole: Tensor) -> list[Tensor]:
    if not fused.endswith("gate_up_proj"):
        return list(whole)
    return [part for expert in whole for part in expert.chunk(2, dim=0)]


def origins(model: nn.Module, keys: Iterable[str]) -> tuple[dict[str, Origin], list[str]]:
    """Where each parameter of a model comes from.

    Args:
        model: On the meta device, as transformers builds it.
        keys: The names of the tensors in the checkpoint.

    Returns:
        By parameter, and the names of the tensors that belong to none.
    """
    try:
        from transformers import conversion_mapping, core_model_loading
    except ImportError:
        return _by_prefix(model, keys)
    transforms = conversion_mapping.get_model_conversion_mapping(model)
    return _Renaming(model, core_model_loading, transforms).origins(keys)


class _Renaming:
    """transformers' own way from a checkpoint's names to a model's (``convert_and_load_state_dict_in_model``)."""

    def __init__(self, model: nn.Module, loading: Any, transforms: Iterable[Any]) -> None:
        transforms = list(transforms)
        self.loading, self.wanted = loading, model.state_dict()
        self.prefix = getattr(model, "base_model_prefix", "")
        self.renamings = [each for each in transforms if isinstance(each, loading.WeightRenaming)]
        self.converters = [each for each in transforms if isinstance(each, loading.WeightConverter)]
        self.by_pattern = {pattern: each for each in self.converters for pattern in each.source_patterns}

    def origins(self, keys: Iterable[str]) -> tuple[dict[str, Origin], list[str]]:
        made: dict[str, Origin] = {}
        left = []
        for key in sorted(keys, key=self.loading.dot_natural_key):
            name, pattern = self._name(key)
            if name not in self.wanted:
                left.append(key)
            elif pattern is None:
                made[name] = Origin([name], [(key, key)])
            else:
                self._add(made, name, key, pattern)
        return made, left

    def _name(self, key: str) -> tuple[str, str | None]:
        name, pattern = self.loading.rename_source_key(key, self.renamings, self.converters, self.prefix, self.wanted)
        if name not in self.wanted and key in self.wanted:
            name, pattern = self.loading.rename_source_key(key, [], [], self.prefix, self.wanted)
        return str(name), pattern

    def _add(self, made: dict[str, Origin], name: str, key: str, pattern: str) -> None:
        converter = self.by_pattern[pattern]
        if name not in made:
            targets = [name.replace(converter.target_patterns[0], each) for each in converter.target_patterns]
            origin = Origin(targets, converter=converter)
            made.update(dict.fromkeys(targets, origin))
        made[name].keys.append((key, pattern))


def _by_prefix(model: nn.Module, keys: Iterable[str]) -> tuple[dict[str, Origin], list[str]]:
    wanted, prefix = set(model.state_dict()), f"{getattr(model, 'base_model_prefix', '')}."
    made: dict[str, Origin] = {}
    left = []
    for key in sorted(keys):
        name = next((n for n in (key, prefix + key, key.removeprefix(prefix)) if n in wanted), None)
        if name is None:
            left.append(key)
        else:
            made[name] = Origin([name], [(key, key)])
    return made, left
