"""Putting described layers into a float model: one that transformers built, or one the user handed in."""

from __future__ import annotations

from torch import nn

from fewbit.formats.architecture import tree
from fewbit.formats.architecture.description import Description, members_of
from fewbit.formats.architecture.values import Json
from fewbit.nn.swap import IN_PLACE, restore_layer


def fill(model: nn.Module, description: Description) -> nn.Module:
    """Put the description's layers and tensors in the places of the float model's own, in place.

    A constant for which the model has no buffer is left out: a model handed in by the user may keep it
    elsewhere.

    Raises:
        ValueError: The float model lacks a place for one of them.
    """
    for path, described in description.modules.items():
        if isinstance(described, dict) and "container" not in described:
            model = _replace(model, *_in_place(path, described, description))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for path, slot in description.tensors.items():
        owner, _, name = path.rpartition(".")
        if slot.kind == "constant":
            if path in buffers:
                tree.find(model, owner)._buffers[name] = slot.empty()
        elif path not in model.state_dict(keep_vars=True):
            place = tree.find(model, owner)
            place._parameters.pop(name, None)  # the None of a layer built without a bias
            place._buffers.pop(name, None)
            tree.add_own_tensor(place, name, slot)
    return model.eval()


def _in_place(path: str, described: dict[str, Json], description: Description) -> tuple[str, Json]:
    """A quantized weight alone, as a tree has it, as the layer in place that holds it; all else as it is."""
    if "weight" not in described:
        return path, described
    layer, _, _ = path.rpartition(".")
    bias = description.tensors.get(f"{layer}.bias" if layer else "bias")
    size: Json = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    return layer, {"in-place": {"class": IN_PLACE, "weight": described["weight"], "bias": size}}


def _replace(root: nn.Module, path: str, described: Json) -> nn.Module:
    """Put the layer described in the place of the one at ``path``.

    Returns:
        The root, which is the new layer if the path is empty.

    Raises:
        ValueError: There is no layer at the path, or the description is of no known form.
    """
    tree.find(root, path)
    if isinstance(described, dict) and "in-place" in described:
        config = members_of(described, {"in-place": dict})["in-place"]
        if config.get("class") != IN_PLACE:
            raise ValueError("a layer in place that is none")
        return restore_layer(root, path, config)
    module = tree.build_module(described, root)
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    tree.find(root, parent)._modules[name] = module
    return root
