"""Training on pictures: batches, loss and schedule, for the loop in ``_training.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _pictures import Pictures, augment
from _training import History, Job, train
from torch import Tensor, nn

from fewbit.train import Distillation


@dataclass(frozen=True)
class PictureSchedule:
    """One cycle of the learning rate: linear up over ``warmup`` of the steps, then a cosine down to zero.

    The first ``small`` share of the steps sees pictures of three quarters' size, which is cheaper and blurs little.
    """

    steps: int
    rate: float
    batch: int = 128
    weight_decay: float = 1e-4
    warmup: float = 0.1
    small: float = 0.0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

    def learning_rate(self, step: int) -> float:
        """That of ``step``."""
        progress = step / self.steps
        if progress < self.warmup:
            return self.rate * (0.04 + 0.96 * progress / self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))

    def side(self, step: int, side: int) -> int:
        """Pixels a side of the pictures of ``step``."""
        return side * 3 // 4 if step < self.small * self.steps else side


def train_on_pictures(
    job: Job,
    model: nn.Module,
    schedule: PictureSchedule,
    pictures: Pictures,
    distill: Distillation | None = None,
    compiled: bool = False,
) -> History:
    """SGD in bfloat16 autocast; ``schedule`` is the job's."""
    forward = torch.compile(model) if compiled else model

    def loss_at(step: int) -> Tensor:
        chosen, generator = batch_of(len(pictures.labels), schedule.batch, step)
        x = augment(pictures.pixels[chosen], generator, schedule.side(step, pictures.pixels.shape[-1]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(x)
        loss = F.cross_entropy(logits.float(), pictures.labels[chosen])
        if distill is None:
            return loss
        with torch.autocast("cpu", torch.bfloat16):
            return loss + distill(logits, x)

    return train(job, model, optimizer_of(model, schedule), loss_at)


def optimizer_of(model: nn.Module, schedule: PictureSchedule) -> torch.optim.Optimizer:
    """Weights decay; biases, norms and learned steps do not."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=schedule.rate, momentum=0.9, nesterov=True)


def batch_of(count: int, batch: int, step: int) -> tuple[Tensor, torch.Generator]:
    """Indices and a generator of the batch of ``step``: every epoch has an order of its own."""
    batch = min(batch, count)
    per_epoch = count // batch
    order = torch.randperm(count, generator=torch.Generator().manual_seed(step // per_epoch))
    place = step % per_epoch * batch
    return order[place : place + batch], torch.Generator().manual_seed(1_000_003 + step)
