"""One training loop for float and quantized networks: it shows progress, keeps its state, and goes on after a kill."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from _journal import Settings, refuse_changed
from torch import Tensor, nn

from fewbit.atomic import new_file
from fewbit.errors import FewbitError

SAVE_EVERY = 60.0  # seconds


class Schedule(Protocol):
    """How many steps, and what the optimizer is told before each."""

    @property
    def steps(self) -> int:
        """How many."""

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of ``step``, which depends on nothing else, so that a resumed run sees the same."""


@dataclass(frozen=True)
class Job:
    """One training: its name for the reader, its schedule, where its state is kept, and what that is tied to."""

    name: str
    schedule: Schedule
    path: Path | None
    settings: Settings
    rate_option: str = "--rate"
    clip: float | None = None


@dataclass
class History:
    """What the plots show: losses, and each learned step's size over time."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scales: dict[str, list[float]] = field(default_factory=dict)


def train(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, loss_at: Callable[[int], Tensor]) -> History:
    """Train with ``loss_at(step)``, the loss of the batch of that step, which depends on nothing but the step.

    Raises:
        FewbitError: The kept state is damaged, of another network or made with other settings; the loss is not finite.
    """
    model.train()
    history, done = _resumed(job, model, optimizer)
    saved = start = time.monotonic()
    last = job.schedule.steps
    for step in range(done, last):
        job.schedule.apply(optimizer, step)
        loss = loss_at(step)
        if not math.isfinite(float(loss.detach())):
            _diverged(job, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if job.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), job.clip)
        optimizer.step()
        if step % 10 == 0 or step + 1 == last:
            _note(history, model, step, float(loss.detach()))
            _show(job.name, step + 1, last, history.loss[-1], (time.monotonic() - start) / (step + 1 - done))
        if step + 1 == last or time.monotonic() - saved > SAVE_EVERY:
            _save(job, model, optimizer, history, step + 1)
            saved = time.monotonic()
    return history


def check_state(job: Job) -> None:
    """Raise FewbitError if a state is kept that this job could not go on from, as far as the file tells."""
    if job.path is not None and job.path.exists():
        refuse_changed(str(job.path), read_state(job.path).get("settings", job.settings), job.settings)


def kept_history(path: Path) -> History:
    """What was noted so far; nothing if the state is gone."""
    return History(**read_state(path)["history"]) if path.exists() else History()


def read_state(path: Path, remedy: str = "if it is one of this run, delete it to train again") -> dict[str, Any]:
    """What `train` kept.

    Raises:
        FewbitError: The file is damaged, or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        dicts = (state["model"], state["optimizer"], state["history"], state.get("settings", {}))
        complete = all(isinstance(each, dict) for each in dicts) and isinstance(state["step"], int)
    except Exception as error:  # damaged files fail in any way
        raise FewbitError(f"{path} cannot be read as a state of training; {remedy}") from error
    if not complete:
        raise FewbitError(f"{path} is not a state of training; {remedy}")
    found: dict[str, Any] = state
    return found


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load the weights that ``path`` held.

    Raises:
        FewbitError: They are another network's.
    """
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FewbitError(
            f"{path} is the state of another network: {textwrap.shorten(reason[-1], 160, placeholder=' …')}"
        ) from error


def _resumed(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[History, int]:
    if job.path is None or not job.path.exists():
        return History(), 0
    check_state(job)
    state = read_state(job.path)
    load_weights(model, state["model"], job.path)
    try:
        optimizer.load_state_dict(state["optimizer"])
        history = History(**state["history"])
    except (ValueError, KeyError, TypeError) as error:
        raise FewbitError(f"{job.path} is the state of another training: {error}") from error
    return history, int(state["step"])


def _save(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer, history: History, step: int) -> None:
    if not all(bool(p.isfinite().all()) for p in model.parameters() if p.is_floating_point()):
        _diverged(job, step)
    if job.path is None:
        return
    told = {"steps": history.steps, "loss": history.loss, "scales": history.scales}
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "history": told}
    with new_file(job.path) as temporary:
        torch.save({**state, "settings": dict(job.settings)}, temporary)


def _diverged(job: Job, step: int) -> None:
    """Put the state aside, which would only diverge again and is tied to this learning rate, and say what to change."""
    aside = ""
    if job.path is not None and job.path.exists():
        target = job.path.with_suffix(".diverged.pt")
        job.path.replace(target)
        aside = f"; its last state is now {target}"
    raise FewbitError(f"{job.name}: the loss is no longer finite at step {step}: lower {job.rate_option}{aside}")


def _note(history: History, model: nn.Module, step: int, loss: float) -> None:
    history.steps.append(step)
    history.loss.append(loss)
    for key, parameter in model.named_parameters():
        if key.endswith("quantizer.scale"):
            history.scales.setdefault(key, []).append(float(parameter.detach().abs().mean()))


def _show(name: str, step: int, steps: int, loss: float, seconds: float) -> None:
    left = seconds * (steps - step)
    text = f"{name}: step {step}/{steps}, loss {loss:.3f}, {left / 60:.0f} min left"
    if sys.stderr.isatty():
        print(f"\r{text:<79}", end="\n" if step == steps else "", file=sys.stderr, flush=True)
    elif step == steps or step % 50 == 1:
        print(text, file=sys.stderr, flush=True)
