"""Plain layer rules for architectures without a table: blocks are the longest list of modules of one class, each linear
stands alone and nothing is folded. Which linears share an input is seen while a block runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fewbit.models.layout import Block, Layout, is_linear, linears
from fewbit.models.table import Group

_WHY = "this architecture has no table in fewbit.models"


def layout(model: nn.Module) -> Layout:
    """The layout of any model; one without a list of modules that hold linears has no blocks."""
    name = _longest_list(model)
    if name is None:
        return Layout("generic", ())
    children = model.get_submodule(name).named_children()
    return Layout("generic", (tuple(_block(child, f"{name}.{key}" if name else key) for key, child in children),))


def shared_inputs(block: nn.Module, run: Callable[[], Any], name: str = "") -> tuple[Group, ...]:
    """Group a block's linears by the tensors that they are given.

    Args:
        block: The block.
        run: Runs it once on real data.
        name: Its full name, put before the linears' paths.

    Returns:
        One group for each distinct input, in the order in which the linears ran; those that did not run stand alone.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            kept.append(x)
            key = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, x._version)
            groups.setdefault(key, []).append(path)

        return see

    paths = linears(block)
    hooks = [block.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True) for path in paths]
    try:
        run()
    finally:
        for each in hooks:
            each.remove()
    ran = [dict.fromkeys(members) for members in groups.values()]
    alone = [dict.fromkeys([path]) for path in paths if not any(path in members for members in ran)]
    before = f"{name}." if name else ""
    seen: set[str] = set()
    made = []
    for members in [*ran, *alone]:  # a linear that ran twice on different inputs stays in its first group
        fresh = tuple(before + path for path in members if path not in seen)
        seen.update(members)
        made += [Group(fresh, why=_WHY)] if fresh else []
    return tuple(made)


def _longest_list(model: nn.Module) -> str | None:
    best, length = None, 0
    for name, module in model.named_modules():
        children = list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        alike = len({type(child) for child in children}) == 1
        if alike and len(children) > length and not is_linear(children[0]) and any(linears(c) for c in children):
            best, length = name, len(children)
    return best


def _block(block: nn.Module, name: str) -> Block:
    return Block(name, tuple(Group((f"{name}.{path}",), why=_WHY) for path in linears(block)))
