"""A family's table, resolved against one model: every path by its full name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fewbit.models.table import Family, Feed, Group, Reader, Stack


@dataclass(frozen=True)
class Block:
    """One block of a model.

    Attributes:
        name: Its full name, such as ``model.layers.3``.
        groups: Its linears by shared input, with full names; every linear of the block is in exactly one group.
        readers: Norms on the residual stream and what reads them.
        writers: Linears that write to the residual stream.
    """

    name: str
    groups: tuple[Group, ...]
    readers: tuple[Reader, ...] = ()
    writers: tuple[str, ...] = ()

    @property
    def behind_attention(self) -> frozenset[str]:
        """The linears behind those that mix the heads of the last attention: a gated product's, or the experts'."""
        fed = [number for number, group in enumerate(self.groups) if group.feed and group.feed.kind == "values"]
        behind = self.groups[fed[-1] + 1 :] if fed else self.groups
        return frozenset(name for group in behind for name in group.linears)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model are, all by their full names; what a model lacks is empty.

    Attributes:
        family: The table's name, ``"generic"`` for plain layer rules.
        stacks: The lists of blocks, in the order in which data meets them.
        embeddings: What makes the input of the first block.
        final_norm: The norm behind the last block.
        head: The output layer.
        heads: Query heads of an attention layer; 0 when unknown.
        key_value_heads: Key and value heads; 0 when unknown.
        no_rotation: Why the residual stream cannot be rotated; empty where it can.
    """

    family: str
    stacks: tuple[tuple[Block, ...], ...]
    embeddings: tuple[str, ...] = ()
    final_norm: str = ""
    head: str = ""
    heads: int = 0
    key_value_heads: int = 0
    no_rotation: str = "nothing is known about the residual stream of this architecture"
    by_name: dict[str, Block] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {block.name: block for block in self.blocks})

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all stacks."""
        return tuple(block for stack in self.stacks for block in stack)


def is_linear(module: nn.Module) -> bool:
    """``nn.Linear`` (subclasses too) and Hugging Face's ``Conv1D``."""
    if isinstance(module, nn.Linear):
        return True
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def linears(block: nn.Module) -> list[str]:
    """The paths of a block's linears, in the order of the module tree."""
    return [name for name, module in block.named_modules() if is_linear(module)]


def resolve(family: str, table: Family, model: nn.Module) -> Layout:
    """The layout of a model whose family is known. The model may be on the meta device."""
    config = _text_config(model)
    prefix = str(getattr(model, "base_model_prefix", ""))
    base = prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    return Layout(
        family,
        tuple(_blocks(model, _join(base, stack.blocks), stack, config) for stack in table.stacks),
        tuple(name for name in (_join(base, each) for each in table.embeddings) if has(model, name)),
        _there(model, _join(base, table.final_norm)) if table.final_norm else "",
        _there(model, table.head) if table.head else "",
        heads,
        int(getattr(config, "num_key_value_heads", None) or heads),
        table.no_rotation,
    )


def has(model: nn.Module, name: str) -> bool:
    """Whether the model has a module of that name."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def holds(config: Any, condition: str) -> bool:
    """Whether ``"attribute"`` is true, or ``"attribute=value"`` holds, in a config; the empty condition does."""
    if not condition:
        return True
    attribute, _, value = condition.partition("=")
    found = getattr(config, attribute, None)
    return str(found) == value if value else bool(found)


def expand(block: nn.Module, path: str) -> list[str]:
    """The paths of a block that a path of a table means: itself, or one for each expert; those that exist."""
    before, star, after = path.partition("*")
    if not star:
        return [path] if has(block, path) else []
    experts = before.rstrip(".")
    if not has(block, experts):
        return []
    children = (f"{before}{name}{after}" for name, _ in block.get_submodule(experts).named_children())
    return [child for child in children if has(block, child)]


def _blocks(model: nn.Module, name: str, stack: Stack, config: Any) -> tuple[Block, ...]:
    if not has(model, name):
        return ()
    return tuple(
        _block(child, f"{name}.{key}", stack, config) for key, child in model.get_submodule(name).named_children()
    )


def _block(block: nn.Module, name: str, stack: Stack, config: Any) -> Block:
    groups = [group for wanted in stack.groups for group in _groups(block, wanted, config)]
    known = {path for group in groups for path in group.linears}
    groups += [
        Group((path,), why="the family's table does not know it") for path in linears(block) if path not in known
    ]
    readers = []
    for reader in stack.readers:
        modules = [found for path in reader.modules for found in expand(block, path)]
        readers.append(Reader(f"{name}.{reader.norm}", tuple(f"{name}.{path}" for path in modules)))
    writers = [f"{name}.{found}" for path in stack.writers for found in expand(block, path)]
    return Block(name, tuple(_named(name, group) for group in groups), tuple(readers), tuple(writers))


def _groups(block: nn.Module, group: Group, config: Any) -> list[Group]:
    """The groups of one table entry, one for each expert, without what the block lacks."""
    found = [expand(block, path) for path in group.linears]
    made = []
    for members in zip(*(paths for paths in found if paths)) if any(found) else ():
        feed = group.feed
        if feed is not None:
            feed = replace(feed, path=_same_expert(feed.path, group.linears[0], members[0]))
        if feed is not None and not holds(config, feed.only_if):
            made.append(Group(tuple(members), why=f"the config does not have {feed.only_if}"))
        elif feed is not None and not has(block, feed.path):
            made.append(Group(tuple(members), why=f"there is no {feed.path}"))
        else:
            made.append(Group(tuple(members), feed, group.why))
    return made


def _same_expert(path: str, pattern: str, member: str) -> str:
    """``path`` with its ``*`` as the member of a group has it."""
    if "*" not in path:
        return path
    before, _, after = pattern.partition("*")
    return path.replace("*", member[len(before) : len(member) - len(after)])


def _named(block: str, group: Group) -> Group:
    feed = group.feed
    return replace(
        group,
        linears=tuple(f"{block}.{path}" for path in group.linears),
        feed=None if feed is None else Feed(f"{block}.{feed.path}", feed.kind, feed.only_if),
    )


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _there(model: nn.Module, name: str) -> str:
    return name if has(model, name) else ""


def _join(base: str, path: str) -> str:
    return f"{base}.{path}" if base else path
