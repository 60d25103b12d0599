"""Learned rounding: codes and scales of several weights at once, by gradient descent on what their layers put out.

A part of a network (a block, or all of it) is seen through one callable: weights and inputs in, outputs out. Each
weight is ``ŵ = s (1 + g) (clamp(round(u + v)) − z)``: u is the start's place on the grid, v in ±½ lets a code move to a
neighbour, g moves the scale of a group. Gradients pass the rounding unchanged. v goes by the sign of its gradient
(AutoRound, arXiv 2309.05516, equation 5), everything continuous by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewbit.calibrate.collect import Progress
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.scale_type import round_scale

Forward = Callable[[Mapping[str, Tensor], Any], Tensor]
Loss = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Part:
    """A part of a network that is to put out what it did in float.

    Attributes:
        forward: From values for the names of ``weights`` and ``free``, and one of ``inputs``, to the output.
        weights: Float matrices ``[out, K]`` by name.
        start: How they are quantized so far.
        inputs: What the part is called with, one item a window.
        targets: What it is to put out, window by window; the loss's second argument.
        loss: From output and target to a number; None for the squared error in units of the target's mean square.
        free: Further float values that may move, such as gains of norms.
    """

    forward: Forward
    weights: Mapping[str, Tensor]
    start: Mapping[str, QTensor]
    inputs: Sequence[Any]
    targets: Sequence[Any]
    loss: Loss | None = None
    free: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: Updates; rates fall linearly to 0 over them. 0 leaves everything as it was.
        batch: Windows of one update.
        rounding: How far v may move in all, in units of the grid's step; 0 leaves codes alone.
        scales: Adam's rate for g; 0 leaves scales alone.
        free: Adam's rate for what is free, relative to its own mean size; 0 leaves it alone.
        held_back: Every so manieth window only judges; 0 for none.
        seed: Of the order of windows.
    """

    steps: int = 100
    batch: int = 2
    rounding: float = 0.5
    scales: float = 1e-3
    free: float = 0.0
    held_back: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Learned:
    """The outcome.

    Attributes:
        weights: The quantized weights, no worse than the start on the windows that only judged.
        free: The values of what was free.
        before: Mean loss of the start on those windows (on all, where none was held back).
        after: Mean loss of the outcome on them.
    """

    weights: dict[str, QTensor]
    free: dict[str, Tensor]
    before: float
    after: float


def learn(part: Part, schedule: Schedule, progress: Progress | None = None) -> Learned:
    """Lower a part's loss; give back the start where the windows that only judge do not agree that it fell.

    Args:
        part: What to change.
        schedule: How.
        progress: Called with ("reconstruct", steps done, steps in all).
    """
    loss = part.loss or relative_error
    taught, judged = _split(len(part.inputs), schedule.held_back)
    variables = {
        name: (_Variable if schedule.rounding > 0 and t.spec.format.is_integer else _Scales)(part.weights[name], t)
        for name, t in part.start.items()
    }
    free = {name: value.detach().clone() for name, value in part.free.items()}
    before = _mean_loss(part, loss, variables, free, judged)
    with torch.enable_grad():
        _descend(part, loss, schedule, variables, free, taught, progress)
    after = _mean_loss(part, loss, variables, free, judged)
    if not after < before:
        return Learned(dict(part.start), dict(part.free), before, before)
    return Learned({name: v.qtensor() for name, v in variables.items()}, free, before, after)


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """The squared error in units of the target's mean square."""
    target = target.to(torch.float32)
    return (output.to(torch.float32) - target).square().mean() / target.square().mean().clamp(min=1e-12)


class _Scales:
    """One weight's scale factors g; its codes stay."""

    def __init__(self, weight: Tensor, start: QTensor) -> None:
        self.start, spec = start, start.spec
        grain, dims = spec.granularity, len(start.shape)
        self.scale = grain.expand(start.scale, dims).to(torch.float32)
        self.zero = (
            torch.zeros(()) if start.zero_point is None else grain.expand(start.zero_point, dims).to(torch.float32)
        )
        self.codes = grain.blocked(spec.format.decode(start.codes))
        self.factor = torch.zeros_like(self.scale)
        self.moved: Tensor | None = None

    def parameters(self, schedule: Schedule) -> tuple[Tensor | None, Tensor]:
        """v and g, asking for gradients where the schedule moves them."""
        self.factor.requires_grad_(schedule.scales > 0)
        return self.moved, self.factor

    def value(self) -> Tensor:
        """The dequantized weight, differentiable by what moves."""
        padded = self.start.spec.granularity.unblocked(self._scale() * (self._codes() - self.zero), self.start.shape)
        return padded[..., : self.start.shape[-1]]

    @torch.no_grad()
    def qtensor(self) -> QTensor:
        """The codes and scales as they are now."""
        start, spec = self.start, self.start.spec
        codes = spec.format.encode(spec.granularity.unblocked(self._codes(), start.shape))
        scale = self._scale().reshape(start.scale.shape).contiguous()
        return QTensor(codes.contiguous(), scale, start.zero_point, spec, start.shape)

    def _codes(self) -> Tensor:
        return self.codes

    def _scale(self) -> Tensor:
        """In the type it is stored in; the gradient passes that rounding."""
        raw = self.scale * (1 + self.factor)
        stored = round_scale(raw.detach().clamp(min=torch.finfo(torch.float32).tiny), self.start.spec)
        return raw + (stored - raw.detach())


class _Variable(_Scales):
    """One weight's rounding offsets v beside its scale factors."""

    def __init__(self, weight: Tensor, start: QTensor) -> None:
        super().__init__(weight, start)
        blocked = start.spec.granularity.blocked(weight.detach().to(torch.float32))
        # As near to the weight as the start's codes allow.
        wanted = blocked / self.scale + self.zero
        self.place = torch.minimum(torch.maximum(wanted, self.codes - 0.499), self.codes + 0.499)
        self.moved = torch.zeros_like(self.place)

    def parameters(self, schedule: Schedule) -> tuple[Tensor | None, Tensor]:
        """v and g, asking for gradients where the schedule moves them."""
        assert self.moved is not None
        self.moved.requires_grad_()
        return super().parameters(schedule)

    def _codes(self) -> Tensor:
        spec = self.start.spec
        assert self.moved is not None
        wanted = self.place + self.moved
        codes = wanted.detach().round().clamp_(spec.qmin, spec.qmax)
        if not wanted.requires_grad:
            return codes
        reached = wanted.clamp(spec.qmin - 0.5, spec.qmax + 0.5)
        return codes + (reached - reached.detach())


def _split(count: int, held_back: int) -> tuple[list[int], list[int]]:
    judged = [i for i in range(count) if held_back and i % held_back == held_back - 1]
    taught = [i for i in range(count) if i not in set(judged)]
    return (taught, judged) if judged else (taught, taught)


@torch.no_grad()
def _mean_loss(
    part: Part, loss: Loss, variables: Mapping[str, _Scales], free: Mapping[str, Tensor], windows: Sequence[int]
) -> float:
    values = {name: variable.value() for name, variable in variables.items()} | dict(free)
    losses = [float(loss(part.forward(values, part.inputs[i]), part.targets[i])) for i in windows]
    return sum(losses) / len(losses)


def _descend(
    part: Part,
    loss: Loss,
    schedule: Schedule,
    variables: Mapping[str, _Scales],
    free: dict[str, Tensor],
    taught: Sequence[int],
    progress: Progress | None,
) -> None:
    """The updates, in place."""
    pairs = [variable.parameters(schedule) for variable in variables.values()]
    rounded = [v for v, _ in pairs if v is not None]
    adam = _adam([g for _, g in pairs if g.requires_grad], free, schedule)
    generator = torch.Generator().manual_seed(schedule.seed)
    waiting: list[int] = []
    for step in range(schedule.steps):
        remaining = 1 - step / schedule.steps
        while len(waiting) < schedule.batch:
            waiting += [taught[i] for i in torch.randperm(len(taught), generator=generator).tolist()]
        batch, waiting = waiting[: schedule.batch], waiting[schedule.batch :]
        made = {name: variable.value() for name, variable in variables.items()}
        # Gradients of all windows are summed up here, and go on to what moves once.
        values = {name: value.detach().requires_grad_(value.requires_grad) for name, value in made.items()}
        for window in batch:
            (loss(part.forward(values | free, part.inputs[window]), part.targets[window]) / len(batch)).backward()  # type: ignore[no-untyped-call]
        for name, value in made.items():
            if value.requires_grad and values[name].grad is not None:
                value.backward(values[name].grad)  # type: ignore[no-untyped-call]
        _step(rounded, adam, 2 * schedule.rounding * remaining / schedule.steps, remaining)
        if progress is not None:
            progress("reconstruct", step + 1, schedule.steps)
    for tensor in (*rounded, *(g for _, g in pairs), *free.values()):
        tensor.requires_grad_(False).grad = None


def _adam(factors: list[Tensor], free: dict[str, Tensor], schedule: Schedule) -> torch.optim.Adam | None:
    groups: list[dict[str, Any]] = (
        [{"params": factors, "lr": schedule.scales, "full": schedule.scales}] if factors else []
    )
    for value in free.values() if schedule.free > 0 else ():
        rate = schedule.free * max(float(value.abs().mean()), 1e-3)
        groups.append({"params": [value.requires_grad_()], "lr": rate, "full": rate})
    return torch.optim.Adam(groups, betas=(0.9, 0.95)) if groups else None


@torch.no_grad()
def _step(rounded: Sequence[Tensor], adam: torch.optim.Adam | None, move: float, remaining: float) -> None:
    for v in rounded:
        if v.grad is not None:
            v.sub_(v.grad.sign_().mul_(move)).clamp_(-0.5, 0.5)
            v.grad = None
    if adam is not None:
        for group in adam.param_groups:
            group["lr"] = group["full"] * remaining
        adam.step()
        adam.zero_grad(set_to_none=True)
