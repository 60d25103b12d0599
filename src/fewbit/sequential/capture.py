"""What each block of a model is called with: hidden states, masks, position embeddings and whatever else.

The model's own forward runs with its blocks replaced. A recorder keeps what it is called with and passes the hidden
states on; masks, rotary tables (one a layer type in Gemma 3) and the like do not depend on hidden states, so each
block's arguments come out as in a real run, for any architecture. Blocks that ran already are replaced by their stored
output: a decoder so sees the encoder's quantized outputs, and the output layer the last block's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fewbit.errors import FewbitError, failing

#: What to do about a model that fails on a window.
REMEDY = "mend the data or the model, if it fails so in float as well; if not, rtn and hqq need no data"

_HIDDEN_NAMES = ("hidden_states", "x", "inputs_embeds")


class Stop(Exception):
    """Everything wanted was seen."""


@dataclass
class BlockCall:
    """How a block is called, apart from its hidden states, which stand first or under ``name``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None = None

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output hidden states, without gradients."""
        with torch.no_grad():
            return self.outputs(block, hidden)

    def outputs(self, block: Callable[..., Any], hidden: Tensor) -> Tensor:
        """What a block, or a function in its place, makes of hidden states."""
        args, kwargs = self.args, dict(self.kwargs)
        if self.name is None:
            args = (hidden, *args)
        else:
            kwargs[self.name] = hidden
        return hidden_of(block(*args, **kwargs))


@dataclass
class Captured:
    """One window at the start of a stack: the first block's hidden states, how each block is called, and what the first
    block returned."""

    hidden: Tensor | None = None
    calls: list[BlockCall] = field(default_factory=list)
    form: Any = None


@dataclass(frozen=True)
class Finished:
    """A stack that ran: its blocks, the form in which they return, and the last one's hidden states."""

    blocks: tuple[str, ...]
    form: Any
    hidden: Tensor


class Interned:
    """Equal tensors kept once: windows of one length share masks and position embeddings."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        """The value with each tensor in it replaced by the first that was equal."""
        return tree_map_only(Tensor, self._one, value)

    def _one(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        alike = self._known.setdefault((tuple(tensor.shape), tensor.dtype), [])
        for known in alike[:8]:
            if known is tensor or torch.equal(known, tensor):
                return known
        copy = tensor.clone()
        alike.append(copy)
        return copy


def capture(
    model: nn.Module,
    window: Mapping[str, Any],
    stack: Sequence[str],
    finished: Sequence[Finished],
    interned: Interned,
    form: Any = None,
    number: int | None = None,
) -> Captured:
    """Run a model up to the last block of a stack.

    Args:
        model: The model; the first block of the stack must hold its weights, the others may be empty.
        window: The model's arguments.
        stack: The names of the blocks.
        finished: Stacks that ran already.
        interned: Shared by the windows of a run.
        form: What the first block returned on another window; it is not run again if that was a tensor alone.
        number: Of the window, for errors.

    Raises:
        FewbitError: The model does not call these blocks one after another with hidden states.
    """
    seen = Captured(form=form)
    recorders = {name: _Recorder(model.get_submodule(name), seen, interned, len(stack)) for name in stack}
    with replaced(model, {**_replays(model, finished), **recorders}), contextlib.suppress(Stop):
        run(model, window, number)
    if len(seen.calls) != len(stack):
        raise FewbitError(
            f"the model called {len(seen.calls)} of the {len(stack)} blocks from {stack[0]} on, on a calibration window"
        )
    return seen


def finish(
    model: nn.Module, window: Mapping[str, Any], finished: Sequence[Finished], number: int | None = None
) -> None:
    """Run what comes behind the blocks, for what hooks see of it."""
    with replaced(model, _replays(model, finished)), contextlib.suppress(Stop):
        run(model, window, number)


def stop(*_: Any) -> None:
    """A hook that ends :func:`finish` where nothing more is wanted.

    Raises:
        Stop: Always.
    """
    raise Stop


def run(model: nn.Module, window: Mapping[str, Any], number: int | None = None) -> Any:
    """Call a model on a window, without a cache.

    Raises:
        FewbitError: The model failed on it.
    """
    window = tree_map_only(Tensor, Tensor.clone, dict(window))
    named = "a calibration window" if number is None else f"calibration window {number + 1}"
    with failing(f"the model failed on {named}", REMEDY), torch.no_grad(), _without_cache(model):
        return model(**window)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returned: itself, or the first of a tuple.

    Raises:
        FewbitError: It holds none.
    """
    found = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(found, Tensor):
        raise FewbitError(f"a block returned {type(output).__name__} where hidden states are expected")
    return found


@contextlib.contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the places of some of the model's own, for a while."""
    before: list[tuple[nn.Module, str, nn.Module | None]] = []
    try:
        for name, module in modules.items():
            parent_name, _, key = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            before.append((parent, key, parent._modules[key]))
            parent._modules[key] = module
        yield
    finally:
        for parent, key, old in reversed(before):
            parent._modules[key] = old


class Stand(nn.Module):
    """Stands in a module's place; models read attributes of their modules, such as a block's layer type."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a child: nothing walks into it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)


class _Recorder(Stand):
    def __init__(self, block: nn.Module, seen: Captured, interned: Interned, total: int) -> None:
        super().__init__(block)
        self.seen, self.interned, self.total = seen, interned, total

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen = self.seen
        name, hidden = _hidden_argument(args, kwargs)
        rest = {key: value for key, value in kwargs.items() if key != name}
        call = BlockCall(self.interned(args[1:] if name is None else args), self.interned(rest), name)
        if not seen.calls:
            seen.hidden = hidden.detach().clone()
            if not isinstance(seen.form, Tensor):
                with torch.no_grad():
                    seen.form = self._block(*args, **kwargs)
                hidden_of(seen.form)
        seen.calls.append(call)
        if len(seen.calls) == self.total:
            raise Stop
        return _in_form(seen.form, hidden)


class _Replay(Stand):
    """Returns what is stored, or passes its input on."""

    def __init__(self, block: nn.Module, form: Any, output: Tensor | None) -> None:
        super().__init__(block)
        self.form, self.output = form, output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _, hidden = _hidden_argument(args, kwargs)
        return _in_form(self.form, hidden if self.output is None else self.output)


def _replays(model: nn.Module, finished: Sequence[Finished]) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {}
    for stack in finished:
        for name in stack.blocks:
            output = stack.hidden if name == stack.blocks[-1] else None
            made[name] = _Replay(model.get_submodule(name), stack.form, output)
    return made


def _hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Tensor]:
    if args and isinstance(args[0], Tensor):
        return None, args[0]
    for name in _HIDDEN_NAMES:
        if isinstance(kwargs.get(name), Tensor):
            return name, kwargs[name]
    raise FewbitError("a block of the model is not called with hidden states first")


def _in_form(form: Any, hidden: Tensor) -> Any:
    """Hidden states as a block returns them: alone, or the first of a tuple."""
    return (hidden, *form[1:]) if isinstance(form, tuple) else hidden


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    changed = [config for config in configs.values() if getattr(config, "use_cache", False) is True]
    for config in changed:
        config.use_cache = False
    try:
        yield
    finally:
        for config in changed:
            config.use_cache = True


def tensors_of(call: BlockCall) -> list[Tensor]:
    """The tensors among a call's arguments."""
    return [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
