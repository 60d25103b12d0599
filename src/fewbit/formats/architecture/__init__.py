"""A model's architecture as JSON, and back, without pickle and without running code that the file names.

Three ways of describing a model are tried in order, each a module of this package with ``describe(model)``
and ``build(description)``: `huggingface` (a class of transformers and its config), `tree` (layers and
Sequentials alone) and `graph` (a torch.fx trace over an allowlist of functions). What none of them can take
is ``unknown``: its layers are described, and the float model that holds them must be handed in again on
loading.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Callable
from types import ModuleType

from torch import nn

from fewbit.errors import FewbitError
from fewbit.formats.architecture import filling, graph, huggingface, layers, tree
from fewbit.formats.architecture.description import Description
from fewbit.formats.architecture.values import Json, Undescribable
from fewbit.nn import PackedWeight, QuantizedWeight

_KINDS: dict[str, ModuleType] = {"huggingface": huggingface, "tree": tree, "graph": graph}


def describe(model: nn.Module) -> Description:
    """Describe a model so that `build` can make it again.

    The description is tried out before it is returned: what `build` makes of it has the model's layers in
    the model's order, and a state dict of the same names, shapes and kinds.

    Args:
        model: Any module, quantized or not; it is left as it is.

    Returns:
        The description; of kind ``unknown``, with the reason in its details, if the model cannot be described
        whole.
    """
    reasons = {}
    for kind, module in _KINDS.items():
        try:
            description: Description = dataclasses.replace(module.describe(model), ties=_ties(model))
            _check(model, description)
        except Undescribable as undescribable:
            reasons[kind] = str(undescribable)
        else:
            return description
    reason = reasons["huggingface" if huggingface.is_model(model) else "graph"]
    return _describe_unknown(model, reason)


def _describe_unknown(model: nn.Module, reason: str) -> Description:
    try:
        slots, constants = tree.own_tensors(model)
    except Undescribable as undescribable:
        raise FewbitError(f"the model cannot be saved because of {undescribable}") from undescribable
    modules, ties = _known_layers(model), _ties(model)
    return Description("unknown", type(model).__name__, {"reason": reason}, modules, slots, ties, constants)


def build(description: Description, model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """Build the skeleton of a model: all its modules, with tensors that hold nothing yet.

    Args:
        description: What `describe` returned, perhaps by way of JSON from an untrusted file.
        model: The float model, or a function that makes it. It then gives the architecture, and the
            description only the layers to put into it; a copy is filled, the model itself stays as it is.

    Raises:
        FewbitError: The description needs ``model``, does not fit it, or is not one `describe` can have
            written; the text starts with what is wrong, for a message that has named the file.
    """
    if model is None and description.kind == "unknown":
        reason = description.details.get("reason")
        raise FewbitError(
            f"the architecture of {description.class_name[:80]} could not be saved "
            f"({str(reason)[:200]}): pass model=<the float module or its factory>"
        )
    if model is None and description.kind not in _KINDS:
        raise FewbitError(f"its model is described in an unknown way ({description.kind[:40]!r})")
    try:
        if model is not None:
            built: nn.Module = filling.fill(_float_model(model), description)
        else:
            built = _KINDS[description.kind].build(description)
        _tie(built, description.ties)
        return built
    except FewbitError:
        raise
    except Exception as error:
        # A hostile description can make a constructor fail in any way.
        what = "its model cannot be built" if model is None else "it does not fit the model given as model="
        raise FewbitError(f"{what}: {_first_line(error)}") from error


def _float_model(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    made = model()
    if not isinstance(made, nn.Module):
        raise FewbitError(f"the factory given as model= returned a {type(made).__name__}, not a torch.nn.Module")
    return made


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check(model: nn.Module, description: Description) -> None:
    """Build the description from its own JSON and compare.

    Raises:
        Undescribable: Something came back different.
    """
    written = json.loads(json.dumps(description.to_json()))
    try:
        skeleton = build(Description.from_json(written))
    except (FewbitError, ValueError) as error:
        raise Undescribable(_first_line(error)) from error
    if _outline(skeleton) != _outline(model):
        raise Undescribable("layers that come back in another order or number")
    ours, theirs = model.state_dict(keep_vars=True), skeleton.state_dict(keep_vars=True)
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise Undescribable(f"its tensor {name}")
    for name, tensor in ours.items():
        if getattr(tensor, "shape", None) != theirs[name].shape:
            raise Undescribable(f"the shape of its tensor {name}")


def _outline(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    modules = tree.outer_modules(model, duplicates=True)
    return [(path, type(module)) for path, module in modules.items() if layers.is_layer(module)]


def _known_layers(model: nn.Module) -> dict[str, Json]:
    """Every layer that can be described, by path, for putting into a float model handed in on loading.

    Raises:
        FewbitError: One of fewbit's own layers cannot be.
    """
    found: dict[str, Json] = {}
    first: dict[int, str] = {}
    for path, module in tree.outer_modules(model, duplicates=True).items():
        known = layers.is_layer(module) and not isinstance(module, QuantizedWeight)
        if not known and not layers.is_in_place(module):
            continue
        earlier = first.setdefault(id(module), path)
        if earlier != path:
            found[path] = {"same": earlier}
            continue
        try:
            found[path] = layers.describe(module)
        except Undescribable as reason:
            if layers.is_quantized(module):
                raise FewbitError(f"the layer {path} cannot be saved: {reason}") from reason
    return found


def _ties(model: nn.Module) -> dict[str, str]:
    """Packed weights that belong to several layers: path to the first path of the same object."""
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for path, module in tree.outer_modules(model).items():
        for name, inner in module.named_modules():
            full = ".".join(part for part in (path, name) if part)
            if isinstance(inner, PackedWeight) and first.setdefault(id(inner), full) != full:
                ties[full] = first[id(inner)]
    return ties


def _tie(model: nn.Module, ties: dict[str, str]) -> None:
    for path, earlier in ties.items():
        ours, theirs = tree.find(model, path), tree.find(model, earlier)
        if not isinstance(ours, PackedWeight) or not isinstance(theirs, PackedWeight) or "." not in path:
            raise ValueError(f"a tie between {path[:80]!r} and {earlier[:80]!r}")
        parent, _, name = path.rpartition(".")
        tree.find(model, parent)._modules[name] = theirs


def warn_if_unknown(description: Description) -> None:
    """Warn the caller of ``save`` when loading will need the float model."""
    if description.kind == "unknown":
        reason = description.details["reason"]
        warnings.warn(
            f"the architecture of {description.class_name} could not be saved ({reason}): "
            "fewbit.load will need model=<the float module or its factory>",
            stacklevel=4,
        )
