"""Seeing the inputs of layers while a float model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.nn import kinds
from fewbit.nn.intercept import Call, read_call
from fewbit.nn.layers import _spread

Receiver = Callable[[str, Call], None]


@contextmanager
def observed(model: nn.Module, names: Sequence[str], receive: Receiver) -> Iterator[None]:
    """While the context lasts, ``receive(name, call)`` is told each input that meets the weight of a named float layer.

    A convolution's call carries its geometry; a transposed one is told as the equivalent convolution of the spread
    input.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name in names:
            module = model.get_submodule(name)
            undo.append(_tap(module, name, receive) if kinds.has_own_forward(module) else _hook(module, name, receive))
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _hook(module: nn.Module, name: str, receive: Receiver) -> Callable[[], None]:
    found = kinds.kind(module)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if found == "Embedding":
            receive(name, Call("embedding", x))
        elif isinstance(module, nn.ConvTranspose2d):
            receive(name, _transposed_call(module, x))
        elif found in ("Conv1d", "Conv2d", "Conv3d"):
            mode: Any = module.padding_mode
            if mode != "zeros":
                sides: Any = module._reversed_padding_repeated_twice
                x = F.pad(x, sides, mode=mode)
            receive(name, Call("conv", x, None, kinds.conv_geometry(module)))
        else:
            receive(name, Call("linear", x))

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _transposed_call(module: nn.ConvTranspose2d, x: Tensor) -> Call:
    stride = (int(module.stride[0]), int(module.stride[1]))
    return Call("conv", _spread(x, stride), None, kinds.transposed_geometry(module))


class _Tap:
    """Stands in a weight's place, tells of each use, and passes the call on with the real weight."""

    def __init__(self, weight: Tensor, kernel: Sequence[int], tell: Callable[[Call], None]) -> None:
        self.weight, self.kernel, self.tell = weight, tuple(kernel), tell

    def __getitem__(self, index: Any) -> Tensor:
        return self.weight[index]  # a layer that picks rows by itself; there is no input to see

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.weight, attribute)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tap = next(value for value in [*args, *named.values()] if isinstance(value, cls))
        tap.tell(read_call(function, args, named, tap.kernel))

        def real(value: Any) -> Any:
            return value.weight if isinstance(value, cls) else value

        return function(*[real(a) for a in args], **{k: real(v) for k, v in named.items()})


def _tap(module: nn.Module, name: str, receive: Receiver) -> Callable[[], None]:
    kernel = kinds.kernel_shape(module)
    parameters = dict(module._parameters)
    weight = module._parameters.pop("weight")
    assert weight is not None
    tap = _Tap(weight, kernel, lambda call: receive(name, call))
    object.__setattr__(module, "weight", tap)

    def restore() -> None:
        object.__delattr__(module, "weight")
        module._parameters.clear()
        module._parameters.update(parameters)  # in their order

    return restore
