"""Whether a converted model computes what the trained one does: prediction by prediction, and layer by layer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from _pictures import Pictures
from torch import Tensor, nn

from fewbit.evaluate import top1_agreement
from fewbit.nn import quantized_layers


@dataclass
class Agreement:
    """Of two models on the same pictures.

    Attributes:
        trained: Top-1 of the trained model, in percent.
        converted: Top-1 of the converted one.
        agreement: Share of the pictures that both put into the same class.
        values: Values that the layers of integers gave, of all pictures.
        different: How many of them are another number in the trained model; 0 where every code is the same.
    """

    trained: float
    converted: float
    agreement: float
    values: int
    different: int


@torch.no_grad()
def agreement(trained: nn.Module, converted: nn.Module, pictures: Pictures, batch: int = 250) -> Agreement:
    """Run both in evaluation mode, side by side."""
    count = _Count()
    logits: tuple[list[Tensor], list[Tensor]] = [], []
    with ExitStack() as undo:
        for name, layer in quantized_layers(converted).items():
            for module, hook in ((trained.get_submodule(name), count.keep(name)), (layer, count.compare(name))):
                undo.callback(module.register_forward_hook(hook).remove)
        for x, _ in pictures.batches(batch):
            for model, found in zip((trained, converted), logits):
                found.append(model(x))
    ours, theirs = (torch.cat(found) for found in logits)
    scores = [100 * float((each.argmax(1) == pictures.labels).double().mean()) for each in (ours, theirs)]
    return Agreement(*scores, top1_agreement(ours, theirs), count.values, count.different)


@dataclass
class _Count:
    """What the layers of one model gave waits for what those of the other give."""

    values: int = 0
    different: int = 0
    waiting: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.waiting[name] = output.clone()  # an activation in place may follow

        return hook

    def compare(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.values += output.numel()
            self.different += int((output != self.waiting.pop(name)).sum())

        return hook
