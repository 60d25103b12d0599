"""Watching one layer in two models: its float output, its quantized output, and what it gives alone on float input.

Most quantized layers are modules that are called, so a hook sees them. A layer class with a forward of its own can
come back from a file as a mere holder of its weight, its forward spelled out in the graph around it. Such a weight is
watched itself: it is asked for a product, and what it answers is the layer's output, unless the class goes on to
change it (then there is nothing to compare inside the running model, and only the layer alone is measured).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.evaluate.error import SignalNoise, SplitSums
from fewbit.evaluate.quantizers import input_sums
from fewbit.nn.swap import quantized_weight, swap_layer
from fewbit.nn.weight import QuantizedWeight

_PRODUCTS = ("linear", "conv", "embedding")


@dataclass
class Watch:
    """One layer's running sums, and the float outputs that wait for their counterpart.

    Attributes:
        name: The layer's name in both models.
        before: The float layer.
        after: The quantized layer.
        output: Errors of the output in the running model.
        alone: Errors of the output on the float layer's own input.
        input: Errors of a static input quantizer, in the running model.
    """

    name: str
    before: nn.Module
    after: nn.Module
    output: SignalNoise = field(default_factory=SignalNoise)
    alone: SignalNoise = field(default_factory=SignalNoise)
    input: SplitSums = field(default_factory=SplitSums)
    waiting: list[Tensor] = field(default_factory=list)
    _probing: bool = False
    _raw: Tensor | None = None
    _answers_alone: bool = True

    def __post_init__(self) -> None:
        self._counterpart = _callable_layer(self.before, self.after)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch both layers for as long as it lasts; the float model is to run first."""
        with ExitStack() as undo:
            hook = self.before.register_forward_hook(self._float_ran, with_kwargs=True)
            undo.callback(hook.remove)
            if self._counterpart is self.after:
                hook = self.after.register_forward_hook(self._quantized_ran, with_kwargs=True)
                undo.callback(hook.remove)
            else:
                undo.enter_context(_tapped(quantized_weight(self.after), self._weight_answered))
            yield

    def _float_ran(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        # An in-place activation may follow and overwrite the output.
        self.waiting.append(output.detach().clone())
        self._probing = True
        try:
            alone = self._counterpart(*args, *kwargs.values())
        finally:
            self._probing = False
        self.alone.add(output, alone)
        if self._raw is not None:
            self._answers_alone, self._raw = torch.equal(self._raw, alone), None

    def _quantized_ran(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not self._probing:
            self._compare(args[0] if args else next(iter(kwargs.values())), output)

    def _weight_answered(self, x: Tensor, output: Tensor) -> None:
        if self._probing:
            self._raw = output
        else:
            self._compare(x, output)

    def _compare(self, x: Tensor, output: Tensor) -> None:
        if not self.waiting:
            return
        reference = self.waiting.pop(0)
        if self._answers_alone and reference.shape == output.shape:
            self.output.add(reference, output)
        input_sums(self.after, x, self.input)


def _callable_layer(before: nn.Module, after: nn.Module) -> nn.Module:
    """The quantized layer, or where it is a mere holder the float layer's class around the quantized weight."""
    if type(after).forward is not nn.Module.forward:
        return after
    layer = copy.copy(before)  # shares everything with the float layer; so its own tables, before they change
    for table in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_hooks_with_kwargs"):
        object.__setattr__(layer, table, copy.copy(getattr(before, table)))
    bias = getattr(after, "bias", None)
    return swap_layer(layer, "", quantized_weight(after), bias if isinstance(bias, Tensor) else None)


@contextmanager
def _tapped(weight: QuantizedWeight, receive: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Tell each input of a weight's products, and the result."""

    def tap(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def told(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = product(x, *args, **kwargs)
            receive(x, result)
            return result

        return told

    try:
        for name in _PRODUCTS:
            object.__setattr__(weight, name, tap(getattr(weight, name)))
        yield
    finally:
        for name in _PRODUCTS:
            weight.__dict__.pop(name, None)
