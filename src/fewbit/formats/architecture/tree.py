"""Models made of nn.Sequential and known layers alone, and the module tree under every other description.

A tree is a table from path to layer or container, parents before children, in the order in which a Sequential
calls them. A model that is nothing else (a single layer, or Sequentials within Sequentials) needs no more
than its tree: what it computes follows from it. For a traced model the tree holds what the graph calls; there
a container of a class of its own is a plain nn.Module, whose only use is to give names.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from fewbit.formats.architecture import layers
from fewbit.formats.architecture.description import Description, Slot, members_of
from fewbit.formats.architecture.values import Json, Undescribable

_CONTAINERS: dict[str, type[nn.Module]] = {
    "Module": nn.Module,
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
_PART = re.compile(r"(?!__)[A-Za-z0-9_-]{1,200}")


def describe(model: nn.Module) -> Description:
    """Describe a model that is a known layer or a nn.Sequential of such, nested or not.

    Raises:
        Undescribable: Some other module is in it.
    """
    for path, module in outer_modules(model).items():
        if not layers.is_layer(module) and (type(module) is not nn.Sequential or is_altered(module)):
            raise Undescribable(f"its part {path or 'at the top'} of class {type(module).__name__}")
    return Description("tree", type(model).__name__, {}, describe_modules(model))


def build(description: Description) -> nn.Module:
    """Build the skeleton of a model that `describe` described; its tensors hold nothing yet.

    Raises:
        ValueError: The description is not one that `describe` can have written.
    """
    model = build_tree(description)
    if description.details or description.tensors:
        raise ValueError("details that a tree of layers does not have")
    for module in outer_modules(model).values():
        if not layers.is_layer(module) and type(module) is not nn.Sequential:
            raise ValueError("a container that computes nothing")
    return model


def is_altered(module: nn.Module) -> bool:
    """Whether calling the module does something that its class and its children do not tell."""
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def outer_modules(model: nn.Module, *, duplicates: bool = False) -> dict[str, nn.Module]:
    """The modules by path, parents before children, without those inside a known layer.

    Args:
        model: The model.
        duplicates: Whether a module that stands at two paths is given at both, or at the first alone.
    """
    found: dict[str, nn.Module] = {}
    inside: str | None = None  # the last known layer; what it holds follows it directly
    for path, module in model.named_modules(remove_duplicate=not duplicates):
        if inside is not None and path.startswith(inside):
            continue
        found[path] = module
        if layers.is_layer(module):
            inside = path + "." if path else ""
    return found


def describe_modules(model: nn.Module) -> dict[str, Json]:
    """The tree of a model: layers and containers by path, in the model's own order.

    Raises:
        Undescribable: A path that cannot be saved, or a layer that was changed after it was built.
    """
    first: dict[int, str] = {}
    modules: dict[str, Json] = {}
    for path, module in outer_modules(model, duplicates=True).items():
        if not is_path(path):
            raise Undescribable(f"the name of its part {path[:80]!r}")
        earlier = first.setdefault(id(module), path)
        if earlier != path:
            modules[path] = {"same": earlier}
        elif layers.is_layer(module):
            modules[path] = layers.describe(module)
        else:
            name = type(module).__name__
            modules[path] = {"container": name if _CONTAINERS.get(name) is type(module) else "Module"}
    return modules


def own_tensors(model: nn.Module) -> tuple[dict[str, Slot], dict[str, Tensor]]:
    """Slots of the tensors outside the known layers, and the values of those that no state dict holds.

    Raises:
        Undescribable: A tensor of a type that no file can hold.
    """
    slots: dict[str, Slot] = {}
    constants: dict[str, Tensor] = {}
    for path, module in outer_modules(model, duplicates=True).items():
        if layers.is_layer(module):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            kind = "parameter" if name in module._parameters else "buffer"
            if name in module._non_persistent_buffers_set:
                kind, constants[full] = "constant", tensor
            slots[full] = Slot.of(tensor, kind)
    return slots, constants


def build_tree(description: Description) -> nn.Module:
    """Build the module tree and the tensors outside its layers, all of them empty.

    Raises:
        ValueError: Something is not of the form `describe_modules` writes.
    """
    root: nn.Module | None = None
    for path, described in description.modules.items():
        if not is_path(path):
            raise ValueError(f"the path {path[:80]!r}")
        module = build_module(described, root)
        if not path:
            root = module
        elif root is None:
            raise ValueError("no top module")
        else:
            _add(root, path, module)
    if root is None:
        raise ValueError("no modules")
    for path, slot in description.tensors.items():
        add_tensor(root, path, slot)
    return root


def build_module(described: Json, root: nn.Module | None) -> nn.Module:
    """Make one entry of a tree: a container, a layer, or the one already at another path of ``root``.

    Raises:
        ValueError: It is of no known form.
    """
    if isinstance(described, dict) and "same" in described and root is not None:
        return find(root, members_of(described, {"same": str})["same"])
    if isinstance(described, dict) and "container" in described:
        name = members_of(described, {"container": str})["container"]
        if name not in _CONTAINERS:
            raise ValueError(f"the unknown container {name[:40]!r}")
        return _CONTAINERS[name]().eval()
    return layers.build(described)


def is_path(path: str) -> bool:
    """Whether a description may hold the path: words of letters, digits, _ and -, none beginning with __."""
    return path == "" or (len(path) <= 4096 and all(_PART.fullmatch(part) for part in path.split(".")))


def find(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, looked up among children only, never among attributes.

    Raises:
        ValueError: There is none.
    """
    module = root
    for part in path.split(".") if path else ():
        child = module._modules.get(part)
        if child is None:
            raise ValueError(f"no layer at {path[:80]!r}")
        module = child
    return module


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    owner = find(root, parent)
    if type(owner) not in _CONTAINERS.values():
        raise ValueError(f"the path {path[:80]!r} inside a layer")
    return owner, name


def _add(root: nn.Module, path: str, module: nn.Module) -> None:
    owner, name = _owner(root, path)
    if hasattr(owner, name):
        raise ValueError(f"the path {path[:80]!r} twice")
    owner.add_module(name, module)


def add_tensor(root: nn.Module, path: str, slot: Slot) -> None:
    """Give a container a tensor of its own, as an empty parameter or buffer.

    Raises:
        ValueError: The path names no container, or is taken.
    """
    if not path or not is_path(path):
        raise ValueError(f"the path {path[:80]!r}")
    owner, name = _owner(root, path)
    add_own_tensor(owner, name, slot)


def add_own_tensor(owner: nn.Module, name: str, slot: Slot) -> None:
    """The same for a tensor of ``owner`` itself.

    Raises:
        ValueError: The name is taken.
    """
    if hasattr(owner, name):
        raise ValueError(f"the name {name[:80]!r} twice")
    tensor = slot.empty()
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor, persistent=slot.kind == "buffer")
