"""One training loop for float and quantized networks: it shows progress, keeps its state, and goes on after a kill."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from _pictures import Pictures, accuracy, augment
from torch import Tensor, nn

from fewbit.train import Distillation

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Schedule:
    """One cycle of the learning rate: linear up over ``warmup`` of the steps, then a cosine down to zero.

    The first ``small`` share of the steps sees pictures of three quarters' size, which is cheaper and blurs little.
    """

    steps: int
    rate: float
    batch: int = 128
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    warmup: float = 0.2
    small: float = 0.0

    def learning_rate(self, step: int) -> float:
        progress = step / self.steps
        if progress < self.warmup:
            return self.rate * (0.04 + 0.96 * progress / self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass
class History:
    """What the plots show: losses, and each learned step's size over time."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scales: dict[str, list[float]] = field(default_factory=dict)


def train(
    name: str, model: nn.Module, pictures: Pictures, schedule: Schedule, path: Path, distill: Distillation | None = None
) -> History:
    """SGD in bfloat16 autocast; the state is kept in ``path``, and a killed run goes on from there."""
    model.train()
    optimizer = optimizer_of(model, schedule)
    history, done = _resumed(model, optimizer, path)
    saved = start = time.monotonic()
    for step, chosen, generator in _batches(len(pictures.labels), schedule, done):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        side = pictures.pixels.shape[-1]
        size = side * 3 // 4 if step < schedule.small * schedule.steps else side
        x = augment(pictures.pixels[chosen], generator, size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), pictures.labels[chosen], label_smoothing=schedule.smoothing)
        if distill is not None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss + distill(logits, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step + 1 == schedule.steps:
            _note(history, model, step, float(loss.detach()))
            _show(name, step + 1, schedule, history.loss[-1], (time.monotonic() - start) / (step + 1 - done))
        if time.monotonic() - saved > SAVE_EVERY:
            _save(model, optimizer, history, step + 1, path)
            saved = time.monotonic()
    if done < schedule.steps:
        _save(model, optimizer, history, schedule.steps, path)
        print(file=sys.stderr)
    return history


def optimizer_of(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Weights decay; biases, norms and learned steps do not."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=schedule.rate, momentum=0.9, nesterov=True)


def _batches(count: int, schedule: Schedule, done: int) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """(step, indices, generator); a step's batch depends on its number alone, so that a resumed run sees the same."""
    batch = min(schedule.batch, count)
    per_epoch = count // batch
    for step in range(done, schedule.steps):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(step // per_epoch))
        place = step % per_epoch * batch
        yield step, order[place : place + batch], torch.Generator().manual_seed(1_000_003 + step)


def _note(history: History, model: nn.Module, step: int, loss: float) -> None:
    history.steps.append(step)
    history.loss.append(loss)
    for key, parameter in model.named_parameters():
        if key.endswith("quantizer.scale"):
            history.scales.setdefault(key, []).append(float(parameter.detach().abs().mean()))


def _show(name: str, step: int, schedule: Schedule, loss: float, seconds: float) -> None:
    left = seconds * (schedule.steps - step)
    text = f"{name}: step {step}/{schedule.steps}, loss {loss:.3f}, {left / 60:.0f} min left"
    print(
        f"\r{text:<79}" if sys.stderr.isatty() else text,
        end="" if sys.stderr.isatty() else "\n",
        file=sys.stderr,
        flush=True,
    )


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, history: History, step: int, path: Path) -> None:
    temporary = path.with_suffix(".new")
    told = {"steps": history.steps, "loss": history.loss, "scales": history.scales}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "history": told}
    torch.save(state, temporary)
    temporary.replace(path)


def _resumed(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> tuple[History, int]:
    if not path.exists():
        return History(), 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return History(**state["history"]), int(state["step"])


def scores(model: nn.Module, pictures: Pictures) -> float:
    """Top-1 accuracy in percent."""
    return 100 * accuracy(model, pictures)
